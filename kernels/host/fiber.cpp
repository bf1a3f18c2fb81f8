#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "sanitize.h"

#if !defined(__x86_64__) || defined(MPA_HOST_UCONTEXT)
#define USE_UCONTEXT 1
#include <ucontext.h>
#endif

namespace host {
namespace {

struct Scheduler {  // the context that resumes fibers: the caller's own stack
  void* place = nullptr;
  void* fake_stack = nullptr;
  void* tsan = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
};
Scheduler scheduler;
Fiber* running = nullptr;

constexpr size_t GUARD = 4096;

#ifdef USE_UCONTEXT
// Any other processor: portable, but each switch is a system call.
void switch_context(void** save, void* to) { swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(to)); }
#else
extern "C" void mpa_switch_context(void** save, void* to);
// System V x86-64: a call may clobber all but these six registers and the stack pointer, so that is all there is to keep.
asm(R"(
.text
.type mpa_switch_context, @function
mpa_switch_context:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size mpa_switch_context, .-mpa_switch_context
)");
void switch_context(void** save, void* to) { mpa_switch_context(save, to); }
#endif

}  // namespace

Fiber::Fiber(void (*body)()) : body_(body) {
  void* memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE) != 0) {
    perror("host kernels: no memory for a fiber's stack");
    abort();
  }
  stack_ = static_cast<char*>(memory) + GUARD;
  prepare_stack();
#if defined(__SANITIZE_THREAD__)
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, STACK);  // else the next owner of these addresses inherits the red zones
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(tsan_);
#endif
#ifdef USE_UCONTEXT
  delete static_cast<ucontext_t*>(place_);
#endif
  munmap(stack_ - GUARD, GUARD + STACK);
}

void Fiber::prepare_stack() {
#ifdef USE_UCONTEXT
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = STACK;
  context->uc_link = nullptr;
  makecontext(context, &Fiber::start, 0);
  place_ = context;
#else
  // As if start() had been called (16-byte aligned call, then the return address) and had switched away at once.
  void** top = reinterpret_cast<void**>(stack_ + STACK - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::start);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  place_ = top;
#endif
}

void Fiber::start() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack_bottom, &scheduler.stack_bytes);
#endif
  running->body_();
  abort();  // a body never returns
}

void Fiber::resume() {
  running = this;
#ifdef USE_UCONTEXT
  ucontext_t here;
  scheduler.place = &here;
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack_, STACK);
#endif
#if defined(__SANITIZE_THREAD__)
  scheduler.tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(&scheduler.place, place_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::yield() {
  Fiber* self = running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self->fake_stack_, scheduler.stack_bottom, scheduler.stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(scheduler.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(&self->place_, scheduler.place);
#if defined(__SANITIZE_ADDRESS__)
  // Another OS thread may have resumed us: it is its stack that we go back to.
  __sanitizer_finish_switch_fiber(self->fake_stack_, &scheduler.stack_bottom, &scheduler.stack_bytes);
#endif
}

}  // namespace host
