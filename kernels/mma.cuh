// Tensor cores, ldmatrix and cp.async: one name, two bodies, PTX on the device and the same over 32 lanes on the host (host/tensor_core.h,
// host/copy.h). Section numbers are the PTX ISA's (9.0). All of it needs sm_80. Every lane of the warp must call mma_* and ldmatrix_*.
//
// Below: lane = 4 * group + quad, group 0..7, quad 0..3. A 32-bit register holds two bf16 or four int8, the first in the low bits.
#pragma once
#include "common.cuh"

#ifndef MPA_HOST
// The 32-bit address in the shared window that PTX wants.
__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
#endif

// Two floats as bf16 in one register, lo in the low half: the operand form of mma_bf16.
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// 9.7.14.5.8, mma.m16n8k16: C[16][8] += A[16][16] B[16][8], bf16 in, float sums.
//   a[0]: A[group][2 quad, +1]   a[1]: A[group+8][2 quad, +1]   a[2]: A[group][2 quad + 8, +1]   a[3]: A[group+8][2 quad + 8, +1]
//   b0:   B[2 quad, +1][group]   b1:   B[2 quad + 8, +1][group]
//   c[0], c[1]: C[group][2 quad, +1]   c[2], c[3]: C[group+8][2 quad, +1]
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 MPA_CALLER) {
#ifdef MPA_HOST
  const uint32_t b[2] = {b0, b1};
  host::mma<float, bf16>("mma_bf16", c, a, b, [](bf16 x) { return to_f32(x); }, caller);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// 9.7.14.5.10, mma.m16n8k32: C[16][8] += A[16][32] B[32][8], int8 in, int32 sums (exact; they wrap).
//   a[0]: A[group][4 quad .. +3]   a[1]: A[group+8][4 quad .. +3]   a[2]: A[group][4 quad + 16 .. +3]   a[3]: A[group+8][4 quad + 16 .. +3]
//   b0:   B[4 quad .. +3][group]   b1:   B[4 quad + 16 .. +3][group]
//   c as mma_bf16's
__device__ __forceinline__ void mma_s8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 MPA_CALLER) {
#ifdef MPA_HOST
  const uint32_t b[2] = {b0, b1};
  host::mma<int, int8_t>("mma_s8", c, a, b, [](int8_t x) { return int(x); }, caller);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// 9.7.14.5.15, ldmatrix: 8x8 matrices of 16-bit elements from shared memory. Lane 8m + i gives the address of row i of matrix m (16 bytes,
// 16-byte aligned); every lane gets in r[m] elements [group][2 quad, +1] of matrix m. _trans: elements [2 quad, +1][group].
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row MPA_CALLER) {
#ifdef MPA_HOST
  host::ldmatrix("ldmatrix_x4", r, 4, false, row, caller);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row MPA_CALLER) {
#ifdef MPA_HOST
  host::ldmatrix("ldmatrix_x4_trans", r, 4, true, row, caller);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// Two matrices: lanes 0..15 give the addresses, those of the others are not used.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row MPA_CALLER) {
#ifdef MPA_HOST
  host::ldmatrix("ldmatrix_x2", r, 2, false, row, caller);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row MPA_CALLER) {
#ifdef MPA_HOST
  host::ldmatrix("ldmatrix_x2_trans", r, 2, true, row, caller);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
#endif
}

// 9.7.9.25.3.1, cp.async: 16 bytes from global to shared memory, both 16-byte aligned, past L1 (.cg). read false: 16 zero bytes, src is not
// read (but must be a pointer that may be formed). Done for this thread after its commit and wait, for others after a barrier as well.
__device__ __forceinline__ void cp_async16(void* dst, const void* src, bool read MPA_CALLER) {
#ifdef MPA_HOST
  host::cp_async(dst, src, 16, read, caller);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(read ? 16 : 0) : "memory");
#endif
}

// The same with 4 bytes, 4-byte aligned, through L1 (.ca), for rows that start at odd places.
__device__ __forceinline__ void cp_async4(void* dst, const void* src, bool read MPA_CALLER) {
#ifdef MPA_HOST
  host::cp_async(dst, src, 4, read, caller);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(read ? 4 : 0) : "memory");
#endif
}

// 9.7.9.25.3.2: all cp.async since the last commit become a group (which may be empty).
__device__ __forceinline__ void cp_async_commit() {
#ifdef MPA_HOST
  host::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// 9.7.9.25.3.3: waits until at most N groups, the youngest, are still under way. What is not committed is not waited for.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#ifdef MPA_HOST
  host::cp_async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
