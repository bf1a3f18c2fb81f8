// Kernels by name, launched through a C interface as cuLaunchKernel takes them. This is what Rust's tests call.
//
// How to build (build.rs under the feature host-kernels): all kernels/host/*.cpp, and for each kernels/X.cu one generated file
//     #include "common.cuh"
//     #include "hopper.cuh"
//     namespace {           // on the device each .cu is a module of its own: two may have a helper of one name
//     #include "X.cu"
//     bool registered = host::add("X_forward_bf16", &X_forward_bf16, 256) && host::add(...);   // 256 from __launch_bounds__
//     }
// with g++ -std=c++20 -g -x c++ -include kernels/host/cuda_host.h -I kernels -Wno-unknown-pragmas -fno-strict-aliasing (nvcc's kernels
// may look at bytes through any type) -ftrivial-auto-var-init=pattern (a sum that is never cleared shows), and
//     -O2                                                                plain
//     -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined   run with ASAN_OPTIONS=detect_leaks=0 (Rust's harness leaks)
//     -O1 -fsanitize=thread
// A Rust test program links stdc++ and then asan and ubsan, or tsan (in g++'s own folder), and with AddressSanitizer runs under
// LD_PRELOAD=$(g++ -print-file-name=libasan.so).
// Link the object files themselves, or the archive as a whole (+whole-archive): nothing refers to the registrations by name.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace host {

struct Kernel {
  unsigned max_threads;                                      // per block, from __launch_bounds__
  std::vector<size_t> parameter_bytes;
  std::function<std::function<void()>(void** args)> bind;    // copies the arguments; the result runs one CUDA thread
};

bool add_kernel(const char* name, Kernel kernel);

// host::add("rms_norm_forward_bf16", &rms_norm_forward_bf16) makes a kernel known. A name that is already there aborts.
template <class... Parameters>
bool add(const char* name, void (*entry)(Parameters...), unsigned max_threads = 1024) {
  auto bind = [entry](void** args) -> std::function<void()> {
    std::tuple<std::remove_const_t<Parameters>...> values;
    [&]<size_t... i>(std::index_sequence<i...>) {
      (std::memcpy(&std::get<i>(values), args[i], sizeof(std::get<i>(values))), ...);
    }(std::index_sequence_for<Parameters...>{});
    return [entry, values] { std::apply(entry, values); };
  };
  return add_kernel(name, Kernel{max_threads, {sizeof(Parameters)...}, bind});
}

}  // namespace host

extern "C" {

// args as cuLaunchKernel takes them: a pointer to each argument; arg_bytes are their sizes. One launch at a time (it locks) and it is over
// when this returns. seed picks the order of blocks, warps and lanes; use several, odd and even.
// Returns 0. Or 1 with a message: the launch is refused (what the driver would refuse, or arguments that do not fit the kernel), or the
// kernel did what it must not (deadlock, divergence, misaligned access, cp.async or ldmatrix outside shared memory); then the outputs
// are half done. What a sanitizer finds it reports itself, and ends the process.
int mpa_host_launch(const char* name, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, size_t shared_bytes,
                    uint64_t seed, void** args, const size_t* arg_bytes, size_t n_args, char* message, size_t message_bytes);

// "Device" memory: 256-byte aligned as cudaMalloc's, exactly this long (AddressSanitizer sees the first byte past it), filled with 0xff,
// which is NaN in every float type.
void* mpa_host_alloc(size_t bytes);
void mpa_host_free(void* memory);
}
