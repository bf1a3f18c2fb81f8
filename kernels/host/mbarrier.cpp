#include "hopper.h"

#include "scheduler.h"

namespace host {
namespace {

constexpr unsigned LIVE = 2;  // shared memory starts as all ones

// Tags for publish and observe: a phase's own, so that who is late is not ordered after the next phase's arrivals as well.
char* tag_of(Mbarrier* barrier, unsigned phase) { return reinterpret_cast<char*>(barrier) + phase; }

// ThreadSanitizer looks at this read: an initialisation that is not ordered before it is a race.
Mbarrier* checked(void* p, const char* what, Location at) {
  check_shared(p, 8, what, at);
  check_aligned(p, 8, what, at);
  uint64_t bits = __atomic_load_n(static_cast<uint64_t*>(p), __ATOMIC_RELAXED);
  Quiet quiet;
  if (__builtin_bit_cast(Mbarrier, bits).live != LIVE) fail(std::string(what) + " of an mbarrier that is not initialised", at);
  return static_cast<Mbarrier*>(p);
}

void end_phase_if_complete(Mbarrier* barrier) {
  if (barrier->pending || barrier->bytes) return;
  barrier->phase = !barrier->phase;
  barrier->pending = barrier->count;
  for (Thread& thread : machine.threads)
    if (thread.state == State::at_mbarrier && thread.mbarrier == barrier && thread.parity != barrier->phase) thread.state = State::running;
}

void store(void* p, Mbarrier value) { *static_cast<volatile uint64_t*>(p) = __builtin_bit_cast(uint64_t, value); }

}  // namespace

void mbarrier_init(void* p, int count, Location at) {
  check_shared(p, 8, "mbarrier_init", at);
  check_aligned(p, 8, "mbarrier_init", at);
  if (count < 1 || count >= 1 << 20) fail("mbarrier_init with a count of " + std::to_string(count), at);
  store(p, {0, unsigned(count), unsigned(count), 0, LIVE});
}

void mbarrier_invalidate(void* p, Location at) {
  checked(p, "mbarrier_invalidate", at);
  store(p, {1, 0, 0, -1, 3});
}

void mbarrier_arrive(void* p, int bytes, Location at) {
  Mbarrier* barrier = checked(p, "mbarrier_arrive", at);
  Quiet quiet;
  if (!barrier->pending) fail("mbarrier_arrive: more arrivals in a phase than the barrier's count of " + std::to_string(barrier->count), at);
  publish(tag_of(barrier, barrier->phase));
  barrier->bytes += bytes;
  barrier->pending -= 1;
  end_phase_if_complete(barrier);
}

void mbarrier_wait(void* p, int parity, Location at) {
  Mbarrier* barrier = checked(p, "mbarrier_wait", at);
  Quiet quiet;
  if (barrier->phase == unsigned(parity & 1)) {
    self().mbarrier = barrier;
    self().parity = parity & 1;
    wait_in(State::at_mbarrier, at);
  }
  observe(tag_of(barrier, parity & 1));
}

std::string mbarrier_complete(void* p, int bytes) {
  auto* barrier = static_cast<Mbarrier*>(p);
  if (barrier->live != LIVE) return "arrives at an mbarrier that is no more";
  publish(tag_of(barrier, barrier->phase));
  barrier->bytes -= bytes;
  end_phase_if_complete(barrier);
  return "";
}

std::string describe_mbarrier(const void* p) {
  auto* barrier = static_cast<const Mbarrier*>(p);
  return "mbarrier at byte " + std::to_string(static_cast<const char*>(p) - machine.shared) + " (of phase " + std::to_string(barrier->phase) + " " +
         std::to_string(barrier->pending) + " arrivals and " + std::to_string(barrier->bytes) + " bytes are missing)";
}

}  // namespace host
