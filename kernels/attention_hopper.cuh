// What attention's kernels for Hopper share: tiles in shared memory, the ring that they come by in, and products of them.
#pragma once
#include "attention_span.cuh"
#include "hopper.cuh"

#ifdef MPA_HOPPER
namespace hopper {

// So many rows of one head, as tile_load puts them. They are 128, 64 or 32 bytes wide, whatever divides a head's row: a head of 80 is five
// boxes of 16 columns beside each other. A head size in between is filled up with zeros, by the copy engine, which knows how wide a head is.
template <int HS, int ROWS>
struct Rows {
  static constexpr int HEAD_SIZE = HS, COUNT = ROWS;
  static constexpr int ROW = HS % 64 == 0 ? 128 : HS % 32 == 0 ? 64 : 32;  // bytes, and width of the swizzle
  static constexpr int COLUMNS = ROW / 2, BOXES = HS / COLUMNS;            // elements of a box's row; boxes
  static constexpr int BOX = ROWS * ROW, BYTES = BOXES * BOX;
  static_assert(HS % 16 == 0 && HS <= 128 && ROWS % 64 == 0, "");
};

// Where a tile is in a ring, and the parity of its barriers' phase.
template <int STAGES>
struct Place {
  int stage, parity;
  __device__ __forceinline__ explicit Place(int tile) : stage(tile % STAGES), parity(tile / STAGES % 2) {}
};

// One lane asks for R's boxes, whose bytes the barrier expects.
template <class R>
__device__ __forceinline__ void load(unsigned char* to, const TensorMap& map, Mbarrier* barrier, int head, int row) {
#pragma unroll
  for (int i = 0; i < R::BOXES; i++) tile_load_3d(to + i * R::BOX, map, barrier, i * R::COLUMNS, head, row);
}

// A warp puts zeros over the rows from `first` on. Swizzled or not, a row stays a row.
template <class R>
__device__ __forceinline__ void clear_from(unsigned char* tile, int first) {
  constexpr int CHUNKS = R::ROW / 16;
  const int rest = R::COUNT - first;
  for (int i = lane_id(); i < R::BOXES * rest * CHUNKS; i += 32) {
    unsigned char* const box = tile + i / CHUNKS / rest * R::BOX;
    *reinterpret_cast<uint4*>(box + (first + i / CHUNKS % rest) * R::ROW + i % CHUNKS * 16) = make_uint4(0, 0, 0, 0);
  }
}

// The warp is done with what a tile has. After a wgmma_wait, which has gathered it.
__device__ __forceinline__ void release(Mbarrier* empty) {
  if (lane_id() == 0) mbarrier_arrive(empty);
}

// s = A B^T, 64 rows of A, on its way.
template <class A, class B>
__device__ __forceinline__ void issue_products(float (&s)[B::COUNT / 2], const unsigned char* a, const unsigned char* b) {
  const uint64_t a0 = wgmma_matrix<A::ROW>(a), b0 = wgmma_matrix<B::ROW>(b);
#pragma unroll
  for (int depth = 0; depth < A::HEAD_SIZE / 16; depth++) {
    const int box = depth * 32 / A::ROW, column = depth * 32 % A::ROW;
    wgmma_bf16<B::COUNT, K_MAJOR, K_MAJOR>(s, a0 + (box * A::BOX + column) / 16, b0 + (box * B::BOX + column) / 16, depth > 0);
  }
  wgmma_commit();
}

// sums += P B, on its way.
template <class B>
__device__ __forceinline__ void issue_sums(float (&sums)[B::HEAD_SIZE / 2], const uint32_t (&p)[B::COUNT / 16][4], const unsigned char* b) {
  const uint64_t b0 = wgmma_matrix<B::ROW>(b, B::BOX);
#pragma unroll
  for (int depth = 0; depth < B::COUNT / 16; depth++) wgmma_bf16<B::HEAD_SIZE, MN_MAJOR>(sums, p[depth], b0 + depth * B::ROW, true);
  wgmma_commit();
}

// Scores or weights in bf16, as the operand P.
template <int N>
__device__ __forceinline__ void pack(uint32_t (&p)[N][4], const float (&s)[8 * N]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    for (int r = 0; r < 4; r++) p[i][r] = pack_bf16(s[8 * i + 2 * r], s[8 * i + 2 * r + 1]);
}

}  // namespace hopper
#endif
