#include "scheduler.h"

#include <cstdlib>
#include <iterator>
#include <map>

namespace host {

Machine machine;

namespace {

std::string name_of(Location at) { return std::string(at.file_name()) + ":" + std::to_string(at.line()); }
bool same_line(Location a, Location b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || !strcmp(a.file_name(), b.file_name()));
}
std::string name_of(uint3 i) { return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")"; }
std::string where() { return std::string("kernel ") + machine.kernel_name + ", block " + name_of(blockIdx); }

bool faulty() {
  Quiet quiet;
  return !machine.fault.empty();
}

// The launch has failed: the fiber stays where it is. What it has done so far comes before the end of the launch.
[[noreturn]] void abandon() {
  publish(&machine.launch_ends);
  for (;;) Fiber::yield();
}

// A fiber's life: one CUDA thread after the other. Threads of different blocks are not ordered, only begin and end of the launch are.
void fiber_body() {
  for (;;) {
    if (faulty()) abandon();
    observe(&machine.launch_begins);
    machine.kernel();
    publish(&machine.launch_ends);
    {
      Quiet quiet;
      if (!self().copies.issued.empty()) fail("returns while its cp.async are under way", Location::current());
      if (!machine.products[self().id / 32].issued.empty()) fail("returns while its wgmma are under way", Location::current());
      self().state = State::returned;
    }
    Fiber::yield();
  }
}

void resume(unsigned id) {
  machine.current = id;
  threadIdx = machine.threads[id].index;
  machine.threads[id].fiber->resume();
}

// Lets the lanes of a warp run until each waits, in an order that starts at a random lane. False: none could run.
bool run_warp_once(unsigned warp) {
  unsigned first = warp * 32, lanes = std::min<unsigned>(32, machine.threads.size() - first), start = next_random() % lanes;
  bool ran = false;
  for (unsigned i = 0; i < lanes; i++) {
    unsigned id = first + (start + i) % lanes;
    if (machine.threads[id].state != State::running) continue;
    resume(id);
    ran = true;
    if (!machine.fault.empty()) return false;
  }
  return ran;
}

// Odd seeds let a warp run ahead to its next barrier, even seeds step all warps together: what a missing barrier breaks, one of them shows.
bool run_warps() {
  unsigned warps = machine.warps.size(), start = next_random() % warps;
  bool ran = false;
  for (unsigned i = 0; i < warps; i++) {
    unsigned warp = (start + i) % warps;
    while (run_warp_once(warp)) {
      ran = true;
      if (!machine.run_ahead) break;
    }
  }
  return ran;
}

std::string report_stuck() {
  std::map<std::string, int> groups;
  for (const Thread& thread : machine.threads) {
    if (thread.state == State::returned) groups["returned"]++;
    if (thread.state == State::at_barrier) groups["at __syncthreads, " + name_of(thread.at)]++;
    if (thread.state == State::at_warp_operation)
      groups[std::string("at ") + machine.warps[thread.id / 32].operation + ", " + name_of(thread.at)]++;
    if (thread.state == State::at_products) groups["at wgmma_wait, " + name_of(thread.at)]++;
    if (thread.state == State::at_mbarrier)
      groups["wait for phase " + std::to_string(thread.parity) + " of " + describe_mbarrier(thread.mbarrier) + ", " + name_of(thread.at)]++;
  }
  std::string report = where() + ": deadlock, a barrier, an mbarrier or a warp operation is not reached by all:";
  for (auto& [place, count] : groups) report += "\n  " + std::to_string(count) + " threads " + place;
  return report;
}

void open_barrier() {
  Location first = machine.threads[0].at;
  for (Thread& thread : machine.threads) {
    if (!same_line(thread.at, first))
      machine.fault = where() + ": divergent __syncthreads: some threads at " + name_of(first) + ", others at " + name_of(thread.at);
    thread.state = State::running;
  }
}

void begin_block(dim3 size) {
  auto& fibers = machine.fibers[next_random() % FIBER_SETS];
  machine.tags.reset(new char[2 + 3 * machine.warps.size()]);
  for (unsigned id = 0; id < machine.threads.size(); id++) {
    Thread& thread = machine.threads[id];
    thread.index = {id % size.x, id / size.x % size.y, id / size.x / size.y};
    thread.id = id;
    thread.state = State::running;
    thread.barriers = 0;
    thread.copies.clear();
    thread.fenced.clear();
    thread.fiber = fibers[id].get();
  }
  for (Warp& warp : machine.warps) warp = Warp{};
  for (Products& products : machine.products) products.clear();
  for (auto& log : machine.warpgroups) log.clear();
  machine.loads.clear();
}

// All threads of the block have returned.
void end_block() {
  std::string fault = check_warpgroups();
  if (!machine.loads.empty()) fault = "the block ends while a tile is under way that was loaded at " + machine.loads[0].where;
  if (!fault.empty()) machine.fault = where() + ": " + fault;
}

// What is asynchronous goes on: a little, or by one thing if nothing else does.
bool pass_time(bool force) {
  bool tiles_first = next_random() % 2;
  bool any = tiles_first && deliver_tiles(force);
  any |= finish_products(force && !any);
  return deliver_tiles(force && !any) || any;
}

void run_block(dim3 size) {
  begin_block(size);
  while (machine.fault.empty()) {
    bool ran = run_warps();
    if (!machine.fault.empty()) return;
    unsigned at_barrier = 0, returned = 0;
    for (const Thread& thread : machine.threads) {
      at_barrier += thread.state == State::at_barrier;
      returned += thread.state == State::returned;
    }
    if (returned == machine.threads.size()) return end_block();
    if (at_barrier == machine.threads.size())
      open_barrier();
    else if (!pass_time(!ran) && !ran)
      machine.fault = report_stuck();
  }
}

void run_block_with_memory(dim3 size) {
  // A heap block of the exact length, so that AddressSanitizer sees the first byte past it. Filled with NaN: on the device it is garbage.
  void* memory = nullptr;
  if (machine.shared_bytes && posix_memalign(&memory, 1024, machine.shared_bytes)) abort();
  if (memory) memset(memory, 0xff, machine.shared_bytes);
  machine.shared = static_cast<char*>(memory);
  run_block(size);
  machine.shared = nullptr;
  free(memory);
}

// The n-th block to run. Seed 0: in order; others start somewhere, odd ones go backwards.
uint64_t nth_block(uint64_t n, uint64_t blocks, uint64_t seed) {
  uint64_t i = (n + seed * 0x9E3779B97F4A7C15 % blocks) % blocks;
  return seed % 2 ? blocks - 1 - i : i;
}

void prepare(dim3 grid, dim3 block, size_t shared_bytes, uint64_t seed) {
  unsigned threads = block.x * block.y * block.z;
  gridDim = grid;
  blockDim = block;
  machine.fault.clear();
  machine.shared_bytes = shared_bytes;
  machine.run_ahead = seed % 2;
  machine.random = seed * 0x9E3779B97F4A7C15 | 1;
  for (auto& fibers : machine.fibers)
    while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>(fiber_body));
  machine.threads.resize(threads);
  machine.warps.resize((threads + 31) / 32);
  machine.products.resize(machine.warps.size());
  machine.warpgroups.resize((threads + 127) / 128);
}

// After a fault fibers stand in the middle of a kernel. They are left behind with their stacks; the next launch makes new ones.
void drop_fibers() {
  for (unsigned id = 0; id < machine.threads.size(); id++)
    if (machine.threads[id].state != State::returned) resume(id);  // to abandon()
  static auto* left_behind = new std::vector<std::unique_ptr<Fiber>>;  // never destroyed
  for (auto& fibers : machine.fibers) {
    std::move(fibers.begin(), fibers.end(), std::back_inserter(*left_behind));
    fibers.clear();
  }
}

}  // namespace

uint64_t next_random() {  // xorshift64
  machine.random ^= machine.random << 13;
  machine.random ^= machine.random >> 7;
  return machine.random ^= machine.random << 17;
}

std::string run_grid(dim3 grid, dim3 block, size_t shared_bytes, uint64_t seed) {
  Quiet quiet;
  prepare(grid, block, shared_bytes, seed);
  publish(&machine.launch_begins);
  uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t n = 0; n < blocks && machine.fault.empty(); n++) {
    uint64_t i = nth_block(n, blocks, seed);
    blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    run_block_with_memory(block);
  }
  if (faulty()) drop_fibers();
  observe(&machine.launch_ends);
  return machine.fault;
}

void fail(const std::string& what, Location at) {
  Quiet quiet;
  machine.fault = where() + ", thread " + name_of(threadIdx) + ": " + what + ", " + name_of(at);
  abandon();
}

void give_way() {
  Fiber::yield();
  if (!machine.fault.empty()) abandon();
}

void wait_in(State state, Location at) {
  self().state = state;
  self().at = at;
  give_way();
}

Warp* arrive(const char* operation, unsigned mask, void* operands, Location at) {
  Thread& thread = self();
  Warp& warp = warp_of(thread);
  unsigned lane = thread.id % 32, lanes = machine.threads.size() - thread.id / 32 * 32;
  if (lanes < 32) mask &= (1u << lanes) - 1;  // the last warp of a block may have fewer than 32 lanes
  if (!(mask >> lane & 1)) fail(std::string(operation) + " by a lane that is not in its mask", at);
  if (!warp.arrived) {
    warp.operation = operation;
    warp.mask = mask;
    warp.at = at;
  } else if (warp.operation != operation || warp.mask != mask || !same_line(warp.at, at)) {
    fail(std::string("lanes of one warp diverge: ") + operation + " here, " + warp.operation + " at " + name_of(warp.at), at);
  }
  warp.arrived |= 1u << lane;
  warp.lane[lane] = operands;
  if (warp.arrived == mask) return &warp;
  wait_in(State::at_warp_operation, at);
  return nullptr;
}

void depart(Warp& warp) {
  unsigned first = self().id / 32 * 32;
  for (unsigned lane = 0; lane < 32; lane++)
    if (warp.mask >> lane & 1) machine.threads[first + lane].state = State::running;
  warp.arrived = 0;
}

void check_aligned(const void* p, size_t bytes, const char* what, Location at) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail(std::string(what) + " is not " + std::to_string(bytes) + "-byte aligned (misaligned address)", at);
}

void check_shared(const void* p, size_t bytes, const char* what, Location at) {
  const char* first = static_cast<const char*>(p);
  if (first < machine.shared || first + bytes > machine.shared + machine.shared_bytes) fail(std::string(what) + " is outside the block's shared memory", at);
}

}  // namespace host

void __syncthreads(host::Location at) {
  host::Quiet quiet;
  host::Thread& thread = host::self();
  // Two tags in turn: a warp that runs ahead to the next barrier must not seem to have met the others there already.
  char* tag = &host::machine.tags[thread.barriers++ % 2];
  host::publish(tag);
  host::wait_in(host::State::at_barrier, at);
  host::observe(tag);
}

void __syncwarp(unsigned mask, host::Location at) {
  host::Quiet quiet;
  host::Thread& thread = host::self();
  host::Warp& warp = host::warp_of(thread);
  char* tag = &host::machine.tags[2 + thread.id / 32 * 2 + warp.fences % 2];
  host::publish(tag);
  if (host::Warp* last = host::arrive("__syncwarp", mask, nullptr, at)) {
    warp.fences++;
    host::depart(*last);
  }
  host::observe(tag);
}

// Atomics do not order other accesses, here as on the device; fences do.
void __threadfence() {
  host::Quiet quiet;
  host::publish(&host::machine.fence);
  host::observe(&host::machine.fence);
}
void __threadfence_block() { __threadfence(); }
void __nanosleep(unsigned) {
  host::Quiet quiet;
  host::give_way();
}
