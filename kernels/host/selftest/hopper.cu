// Kernels for the self-test of Hopper's units (hopper.cuh): results compared with plain loops in test_hopper.cpp.
#include "../../hopper.cuh"

// out = the bytes of one tile as they lie in shared memory. rank 2 to 4.
extern "C" __global__ void __launch_bounds__(64) selftest_tile_load(uint32_t* out, const __grid_constant__ TensorMap map, int rank, int x, int y,
                                                                    int z, int w, int bytes) {
#ifdef MPA_HOPPER
  unsigned char* const tile = shared_memory<unsigned char>();
  auto* const barrier = reinterpret_cast<Mbarrier*>(tile + bytes);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, bytes);
    if (rank == 2) tile_load_2d(tile, map, barrier, x, y);
    if (rank == 3) tile_load_3d(tile, map, barrier, x, y, z);
    if (rank == 4) tile_load_4d(tile, map, barrier, x, y, z, w);
  }
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += 64) out[i] = reinterpret_cast<uint32_t*>(tile)[i];
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_invalidate(barrier);
#else
  __trap();
#endif
}

// A ring of `stages` numbers that warp 0 fills and warps 1 and 2 add up: phases go round many times. out[2].
extern "C" __global__ void __launch_bounds__(96) selftest_mbarrier(int* out, int steps, int stages) {
#ifdef MPA_HOPPER
  Mbarrier* const full = shared_memory<Mbarrier>();
  Mbarrier* const empty = full + stages;
  int* const ring = reinterpret_cast<int*>(empty + stages);
  if (threadIdx.x == 0)
    for (int i = 0; i < stages; i++) mbarrier_init(full + i, 1), mbarrier_init(empty + i, 2);
  __syncthreads();
  int sum = 0;
  for (int step = 0; step < steps; step++) {
    const int stage = step % stages, parity = step / stages % 2;
    if (warp_id() == 0) {
      if (lane_id() != 0) continue;
      mbarrier_wait(empty + stage, parity ^ 1);
      ring[stage] = step + 1;
      mbarrier_arrive(full + stage);
    } else {
      mbarrier_wait(full + stage, parity);
      sum += ring[stage];
      __syncwarp();
      if (lane_id() == 0) mbarrier_arrive(empty + stage);
    }
  }
  if (warp_id() > 0 && lane_id() == 31) out[warp_id() - 1] = sum;
#else
  __trap();
#endif
}

#ifdef MPA_HOPPER
constexpr int DEPTH = 64;

// A matrix of `rows` rows by `columns` in tiles of ROW bytes a row, one after the other. Thread 0 only.
template <int ROW>
__device__ void load_matrix(unsigned char* to, const TensorMap& map, Mbarrier* barrier, int rows, int columns) {
  for (int tile = 0; tile < columns / (ROW / 2); tile++) tile_load_2d(to + tile * rows * ROW, map, barrier, tile * (ROW / 2), 0);
}

// The matrix that a product of depth 16 takes at step k. `rows`: of the tiles.
template <int ROW, Major MAJOR>
__device__ uint64_t operand(const unsigned char* tiles, int rows, int k) {
  if (MAJOR == MN_MAJOR) return wgmma_matrix<ROW>(tiles + k * 16 * ROW, rows * ROW);
  return wgmma_matrix<ROW>(tiles + k * 32 / ROW * rows * ROW + k * 32 % ROW);
}

// c[64][N] = a b. A's tensor is [64][DEPTH] or, MN_MAJOR, [DEPTH][64]; B's [N][DEPTH] or [DEPTH][N].
template <int N, int ROW, Major A, Major B>
__device__ void multiply(float* c, const TensorMap& a_map, const TensorMap& b_map, const bf16* a_registers) {
  if constexpr (B == MN_MAJOR && N % (ROW / 2) != 0) return;  // no whole tiles
  unsigned char* const a_tiles = shared_memory<unsigned char>();
  unsigned char* const b_tiles = a_tiles + 64 * DEPTH * 2;
  auto* const barrier = reinterpret_cast<Mbarrier*>(b_tiles + N * DEPTH * 2);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(barrier, (64 + N) * DEPTH * 2);
    load_matrix<ROW>(a_tiles, a_map, barrier, 64, 64);
    load_matrix<ROW>(b_tiles, b_map, barrier, B == K_MAJOR ? N : DEPTH, B == K_MAJOR ? DEPTH : N);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  const int row = threadIdx.x / 32 * 16 + lane_id() / 4, column = lane_id() % 4 * 2;
  float d[N / 2];
  uint32_t a[DEPTH / 16][4];
  for (int i = 0; i < N / 2; i++) d[i] = NAN;
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++)
    for (int r = 0; r < 4; r++) memcpy(&a[k][r], a_registers + (row + r % 2 * 8) * DEPTH + k * 16 + column + r / 2 * 8, 4);
  wgmma_fence(d, a);
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) {
    const uint64_t b = operand<ROW, B>(b_tiles, B == K_MAJOR ? N : DEPTH, k);
    if (k % 2 == 0) wgmma_bf16<N, A, B>(d, operand<ROW, A>(a_tiles, 64, k), b, k > 0);
    else wgmma_bf16<N, B>(d, a[k], b, true);
    wgmma_commit();
  }
  wgmma_wait<0>(d, a);
  for (int i = 0; i < N / 2; i++) c[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
}

template <int N, int ROW>
__device__ void multiply_rows(float* c, const TensorMap& a, const TensorMap& b, const bf16* a_registers, int a_major, int b_major) {
  if (!a_major && !b_major) multiply<N, ROW, K_MAJOR, K_MAJOR>(c, a, b, a_registers);
  if (!a_major && b_major) multiply<N, ROW, K_MAJOR, MN_MAJOR>(c, a, b, a_registers);
  if (a_major && !b_major) multiply<N, ROW, MN_MAJOR, K_MAJOR>(c, a, b, a_registers);
  if (a_major && b_major) multiply<N, ROW, MN_MAJOR, MN_MAJOR>(c, a, b, a_registers);
}

template <int N>
__device__ void multiply_any(float* c, const TensorMap& a, const TensorMap& b, const bf16* a_registers, int row, int a_major, int b_major) {
  if (row == 128) multiply_rows<N, 128>(c, a, b, a_registers, a_major, b_major);
  if (row == 64) multiply_rows<N, 64>(c, a, b, a_registers, a_major, b_major);
  if (row == 32) multiply_rows<N, 32>(c, a, b, a_registers, a_major, b_major);
}
#endif

// c[64][n] = A[64][64] B[64][n]: steps of depth 16 take A from shared memory and from registers in turn.
extern "C" __global__ void __launch_bounds__(128) selftest_wgmma(float* c, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                                                 const bf16* a_registers, int n, int row, int a_major, int b_major) {
#ifdef MPA_HOPPER
  if (n == 64) multiply_any<64>(c, a, b, a_registers, row, a_major, b_major);
  if (n == 80) multiply_any<80>(c, a, b, a_registers, row, a_major, b_major);
  if (n == 96) multiply_any<96>(c, a, b, a_registers, row, a_major, b_major);
  if (n == 128) multiply_any<128>(c, a, b, a_registers, row, a_major, b_major);
#else
  __trap();
#endif
}

// c[64][n] = A[64][128] B[n][128]^T in int8, one tile of each.
#ifdef MPA_HOPPER
template <int N>
__device__ void multiply_s8(int* c, const TensorMap& a_map, const TensorMap& b_map) {
  unsigned char *const a = shared_memory<unsigned char>(), *const b = a + 64 * 128;
  auto* const barrier = reinterpret_cast<Mbarrier*>(b + N * 128);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(barrier, (64 + N) * 128);
    tile_load_2d(a, a_map, barrier, 0, 0);
    tile_load_2d(b, b_map, barrier, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  int d[N / 2];
  wgmma_fence(d);
#pragma unroll
  for (int k = 0; k < 128; k += 32) wgmma_s8<N>(d, wgmma_matrix<128>(a + k), wgmma_matrix<128>(b + k), k > 0);
  wgmma_commit();
  wgmma_wait<0>(d);
  const int row = threadIdx.x / 32 * 16 + lane_id() / 4, column = lane_id() % 4 * 2;
  for (int i = 0; i < N / 2; i++) c[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
}
#endif

extern "C" __global__ void __launch_bounds__(128) selftest_wgmma_s8(int* c, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                                                    int n) {
#ifdef MPA_HOPPER
  if (n == 128) multiply_s8<128>(c, a, b);
  if (n == 256) multiply_s8<256>(c, a, b);
#else
  __trap();
#endif
}
