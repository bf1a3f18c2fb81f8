// A fiber: a stack of its own and a place to go on. One per CUDA thread; all take turns on one OS thread.
#pragma once
#include <cstddef>

namespace host {

class Fiber {
 public:
  explicit Fiber(void (*body)());  // body starts at the first resume() and never returns
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume();        // called by the scheduler: go on until this fiber yields
  static void yield();  // called inside a fiber: back to the scheduler

 private:
  static void start();
  void prepare_stack();

  static constexpr size_t STACK = 256 << 10;  // reserved; only touched pages cost memory

  void (*body_)();
  char* stack_;                // lowest address; the page below is a guard
  void* place_ = nullptr;      // stack pointer, or ucontext_t*
  void* fake_stack_ = nullptr; // AddressSanitizer's
  void* tsan_ = nullptr;       // ThreadSanitizer's fiber
};

}  // namespace host
