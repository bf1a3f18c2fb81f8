// CUDA's words and vector types for g++.
#pragma once
// The standard headers come before the words below, which they do not know.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <cstddef>
#include <source_location>
#include <type_traits>

#define MPA_HOST 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__ static const
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A static would outlive its block, and gcc's AddressSanitizer puts no red zone behind one in a template. One way is enough: shared_memory<T>().
#define __shared__ no_static_shared_memory__use_shared_memory_of_common_cuh

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Aligned as on the device: UndefinedBehaviorSanitizer reports a misaligned access through them.
#define MPA_VECTOR_TYPES(T, name)                                                  \
  struct __align__(2 * sizeof(T)) name##2 { T x, y; };                             \
  struct __align__(4 * sizeof(T)) name##4 { T x, y, z, w; };                       \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                       \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
MPA_VECTOR_TYPES(signed char, char)
MPA_VECTOR_TYPES(unsigned char, uchar)
MPA_VECTOR_TYPES(short, short)
MPA_VECTOR_TYPES(unsigned short, ushort)
MPA_VECTOR_TYPES(int, int)
MPA_VECTOR_TYPES(unsigned, uint)
MPA_VECTOR_TYPES(float, float)
#undef MPA_VECTOR_TYPES
struct __align__(16) longlong2 { long long x, y; };
struct __align__(16) double2 { double x, y; };

// Set by the scheduler for the CUDA thread that runs now.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace host {
using Location = std::source_location;
}
