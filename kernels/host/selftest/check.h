// What the self-tests share: launching by name, device memory, counting failures.
#pragma once
#include <cstdio>
#include <string>

#include "../launch.h"
#include "../types.h"

inline int failures = 0;

inline void check(bool good, const std::string& what) {
  if (good) return;
  if (++failures <= 20) printf("FAILED: %s\n", what.c_str());
}

template <class T>
class Device {  // n elements of T, as mpa_host_alloc gives them
 public:
  explicit Device(size_t n) : n_(n), p_(static_cast<T*>(mpa_host_alloc(n * sizeof(T)))) {}
  ~Device() { mpa_host_free(p_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  T* get() { return p_; }
  T& operator[](size_t i) { return p_[i]; }
  size_t size() const { return n_; }

 private:
  size_t n_;
  T* p_;
};

struct Shape {
  dim3 grid, block;
  size_t shared_bytes = 0;
};

// The message; empty: it went well.
template <class... Arguments>
std::string launch(const char* name, Shape shape, uint64_t seed, Arguments... arguments) {
  void* pointers[] = {static_cast<void*>(&arguments)...};
  size_t bytes[] = {sizeof(arguments)...};
  char message[4096];
  int rc = mpa_host_launch(name, shape.grid.x, shape.grid.y, shape.grid.z, shape.block.x, shape.block.y, shape.block.z, shape.shared_bytes,
                           seed, pointers, bytes, sizeof...(arguments), message, sizeof message);
  if (rc == 0 && message[0]) return std::string("0 returned, yet a message: ") + message;
  if (rc != 0 && !message[0]) return "refused without a message";
  return message;
}

template <class... Arguments>
void launch_well(const char* name, Shape shape, uint64_t seed, Arguments... arguments) {
  std::string message = launch(name, shape, seed, arguments...);
  check(message.empty(), std::string(name) + ", seed " + std::to_string(seed) + ": " + message);
}
