// What the sanitizers have to be told about fibers. Empty in a plain build.
#pragma once
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace host {

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer sees every CUDA thread as a thread of its own (fiber.cpp). This layer's own bookkeeping is shared by them all without
// a lock, since only one of them runs at a time: while a Quiet lives, the accesses of its fiber are not looked at.
struct Quiet {
  Quiet() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
// Where this layer touches memory in the place of the device while a Quiet lives.
struct Loud {
  Loud() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  ~Loud() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
};
// Memory order: what came before publish(tag) happens before what follows a later observe(tag). Nothing else orders two CUDA threads.
// A fiber that has played a thread of one block is ordered after that whole block. So there are two sets of fibers and each block takes one
// at random: a race between two blocks shows when they took different ones.
constexpr unsigned FIBER_SETS = 2;
inline void publish(void* tag) { __tsan_release(tag); }
inline void observe(void* tag) { __tsan_acquire(tag); }
#else
struct Quiet {
  Quiet() {}
  ~Quiet() {}
};
struct Loud {
  Loud() {}
  ~Loud() {}
};
constexpr unsigned FIBER_SETS = 1;
inline void publish(void*) {}
inline void observe(void*) {}
#endif

}  // namespace host
