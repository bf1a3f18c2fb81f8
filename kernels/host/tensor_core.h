// ldmatrix and mma.sync over the 32 lanes of a warp. The lane layouts are described in mma.cuh.
#pragma once
#include "warp.h"

namespace host {

constexpr unsigned ALL_LANES = 0xffffffff;

inline void require_whole_warp(const char* operation, Location at) {
  if (machine.threads.size() - self().id / 32 * 32 < 32) fail(std::string(operation) + " needs all 32 lanes, the block has fewer in this warp", at);
}

// `count` 8x8 matrices of 16-bit elements; lane 8m+i holds the address of row i of matrix m and reads it itself, so that a fault or a
// race is reported for the thread that gave the address. Lane i gets elements [i/4][2*(i%4)] and the next (transposed: of the transpose).
inline void ldmatrix(const char* operation, uint32_t* out, int count, bool transposed, const void* row, Location at) {
  require_whole_warp(operation, at);
  struct Operands {
    uint16_t row[8];
    uint32_t* out;
  } mine{{}, out};
  if (int(self().id % 32) < 8 * count) {
    check_shared(row, 16, operation, at);
    check_aligned(row, 16, operation, at);
    for (int i = 0; i < 8; i++) mine.row[i] = static_cast<const volatile uint16_t*>(row)[i];
  }
  warp_operation(operation, ALL_LANES, &mine, at, [=](void** lane, unsigned) {
    for (int m = 0; m < count; m++) {
      auto element = [&](int y, int x) { return uint32_t(static_cast<Operands*>(lane[8 * m + y])->row[x]); };
      for (int i = 0; i < 32; i++) {
        int y = i / 4, x = i % 4 * 2;
        uint32_t low = transposed ? element(x, y) : element(y, x);
        uint32_t high = transposed ? element(x + 1, y) : element(y, x + 1);
        static_cast<Operands*>(lane[i])->out[m] = low | high << 16;
      }
    }
  });
}

struct MmaOperands {
  void* c;
  const uint32_t *a, *b;
};

// Element e of the register that starts at word.
template <class T>
inline T element_of(const uint32_t* word, int e) {
  T value;
  memcpy(&value, reinterpret_cast<const char*>(word) + e * sizeof(T), sizeof(T));
  return value;
}

// C[16][8] += A[16][K] B[K][8]; a 32-bit register holds E elements of T, K = 8 E. C is accumulated in its own type, k upwards.
template <class C, class T, class Widen>
inline void mma(const char* operation, C* c, const uint32_t* a, const uint32_t* b, Widen widen, Location at) {
  constexpr int E = 4 / sizeof(T), K = 8 * E;
  require_whole_warp(operation, at);
  MmaOperands mine{c, a, b};
  warp_operation(operation, ALL_LANES, &mine, at, [=](void** lane, unsigned) {
    C A[16][K], B[K][8];
    for (int i = 0; i < 32; i++) {
      const MmaOperands& from = *static_cast<MmaOperands*>(lane[i]);
      int group = i / 4, in_group = i % 4;
      for (int e = 0; e < E; e++) {
        for (int r = 0; r < 4; r++) A[group + r % 2 * 8][in_group * E + r / 2 * 4 * E + e] = widen(element_of<T>(from.a + r, e));
        for (int r = 0; r < 2; r++) B[in_group * E + r * 4 * E + e][group] = widen(element_of<T>(from.b + r, e));
      }
    }
    for (int m = 0; m < 16; m++) {
      C sum[8] = {};
      for (int k = 0; k < K; k++)
        for (int n = 0; n < 8; n++) sum[n] += A[m][k] * B[k][n];
      for (int n = 0; n < 8; n++) static_cast<C*>(static_cast<MmaOperands*>(lane[m % 8 * 4 + n / 2])->c)[m / 8 * 2 + n % 2] += sum[n];
    }
  });
}

}  // namespace host
