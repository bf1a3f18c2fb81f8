#include "launch.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "scheduler.h"

namespace host {
namespace {

// Functions, not objects: registrations run before main in any order.
std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}
std::mutex& launching() {
  static std::mutex mutex;
  return mutex;
}

constexpr size_t MAX_SHARED = 227 << 10;  // per block on sm_80 164 KiB, sm_89 99 KiB, sm_90 227 KiB: the launcher's concern

std::string text(dim3 d) { return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z); }

// What the driver would refuse.
std::string check_sizes(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z) return "empty grid " + text(grid);
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return "grid " + text(grid) + " is over 2147483647x65535x65535";
  if (!threads) return "empty block " + text(block);
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > 1024) return "block " + text(block) + " is over 1024 threads (z: 64)";
  if (threads > kernel.max_threads)
    return "block " + text(block) + " is over the kernel's __launch_bounds__(" + std::to_string(kernel.max_threads) + ")";
  if (shared_bytes > MAX_SHARED) return std::to_string(shared_bytes) + " bytes of shared memory are over 227 KiB";
  return "";
}

std::string check_arguments(const Kernel& kernel, void** args, const size_t* arg_bytes, size_t n_args) {
  if (n_args != kernel.parameter_bytes.size())
    return "takes " + std::to_string(kernel.parameter_bytes.size()) + " arguments, got " + std::to_string(n_args);
  for (size_t i = 0; i < n_args; i++) {
    if (!args[i]) return "argument " + std::to_string(i) + " is a null pointer to an argument";
    if (arg_bytes[i] != kernel.parameter_bytes[i])
      return "argument " + std::to_string(i) + " has " + std::to_string(arg_bytes[i]) + " bytes, the parameter " + std::to_string(kernel.parameter_bytes[i]);
  }
  return "";
}

std::string launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, uint64_t seed, void** args, const size_t* arg_bytes, size_t n_args) {
  auto found = kernels().find(name);
  if (found == kernels().end()) return std::string("no kernel ") + name + " among the " + std::to_string(kernels().size()) + " known";
  const Kernel& kernel = found->second;
  std::string refusal = check_sizes(kernel, grid, block, shared_bytes);
  if (refusal.empty()) refusal = check_arguments(kernel, args, arg_bytes, n_args);
  if (!refusal.empty()) return std::string("kernel ") + name + ": " + refusal;
  machine.kernel_name = found->first.c_str();
  machine.kernel = kernel.bind(args);
  return run_grid(grid, block, shared_bytes, seed);
}

}  // namespace

bool add_kernel(const char* name, Kernel kernel) {
  if (!kernels().emplace(name, std::move(kernel)).second) {
    fprintf(stderr, "host kernels: two kernels are named %s\n", name);
    abort();
  }
  return true;
}

}  // namespace host

extern "C" int mpa_host_launch(const char* name, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                               size_t shared_bytes, uint64_t seed, void** args, const size_t* arg_bytes, size_t n_args, char* message,
                               size_t message_bytes) {
  std::lock_guard lock(host::launching());
  std::string report = host::launch(name, dim3(gx, gy, gz), dim3(bx, by, bz), shared_bytes, seed, args, arg_bytes, n_args);
  if (message_bytes) snprintf(message, message_bytes, "%s", report.c_str());
  return !report.empty();
}

extern "C" void* mpa_host_alloc(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes)) return nullptr;
  memset(memory, 0xff, bytes);
  return memory;
}

// A block of `capacity` bytes gets a new user, who asked for `bytes`: what it held is spoiled, what lies beyond is out of bounds.
extern "C" void mpa_host_reuse(void* memory, [[maybe_unused]] size_t bytes, size_t capacity) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory, capacity);
#endif
  memset(memory, 0xff, capacity);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(memory) + bytes, capacity - bytes);
#endif
}

extern "C" void mpa_host_free(void* memory) { free(memory); }
