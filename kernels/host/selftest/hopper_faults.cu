// A producer and a consumer as kernels for Hopper have them: right with fault 0, and one planted bug per other number (faults.h).
#include "../../hopper.cuh"
#include "faults.h"

// c[64][64] = the sum over steps of T T^T, T[step][64][64], through a ring of two stages. Four warps multiply, the fifth loads.
extern "C" __global__ void __launch_bounds__(160) selftest_hopper_fault(float* c, const __grid_constant__ TensorMap tiles, int steps, int fault) {
#ifdef MPA_HOPPER
  constexpr int STAGES = 2, BYTES = 64 * 128;
  unsigned char* const ring = shared_memory<unsigned char>();
  auto* const full = reinterpret_cast<Mbarrier*>(ring + STAGES * BYTES);
  Mbarrier* const empty = full + STAGES;
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; i++) {
      if (fault != UNINITIALISED_MBARRIER) mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 4);
      mbarrier_fence_init();
    }
  if (fault != MISSING_BARRIER_AFTER_INIT) __syncthreads();

  if (warp_id() == 4) {
    for (int step = 0; step < steps && lane_id() == 0; step++) {
      const int stage = step % STAGES, parity = step / STAGES % 2;
      if (fault != FILLED_TOO_EARLY) mbarrier_wait(empty + stage, parity ^ 1);
      if (fault == MISSING_EXPECT) mbarrier_arrive(full + stage);
      else mbarrier_arrive_expect(full + stage, fault == EXPECTS_TOO_MUCH ? BYTES + 16 : BYTES);
      unsigned char* to = ring + stage * BYTES + (fault == TILE_OUTSIDE_SHARED ? 2 * BYTES : fault == MISALIGNED_TILE ? 128 : 0);
      tile_load_3d(to, tiles, full + stage, 0, 0, fault == TILE_PAST_GLOBAL ? step + 1 : step);
    }
    if (fault == ENDS_WHILE_LOADING && lane_id() == 0) {
      mbarrier_wait(empty, steps / STAGES % 2 ^ 1);
      for (int i = 0; i < 9; i++) tile_load_3d(ring, tiles, full, 0, 0, 0);
    }
    return;
  }
  float d[32];
  for (int i = 0; i < 32; i++) d[i] = 0;
  uint32_t a[1][4] = {};
  for (int step = 0; step < steps; step++) {
    const int stage = step % STAGES, parity = step / STAGES % 2;
    if (fault != MISSING_TILE_WAIT) mbarrier_wait(full + stage, fault == WRONG_PARITY ? parity ^ 1 : parity);
    if (fault != MISSING_PRODUCT_FENCE || step == 0) wgmma_fence(d, a);
    for (int k = 0; k < 4; k++) {
      if (fault == THREE_WARPS_MULTIPLY && warp_id() == 3 && step == steps - 1 && k == 3) break;
      const uint64_t matrix = wgmma_matrix<128>(ring + stage * BYTES + k * 32);
      wgmma_bf16<64, K_MAJOR, K_MAJOR>(d, matrix, matrix, true);
    }
    // Zeros times the tile: adds nothing.
    wgmma_bf16<64, K_MAJOR>(d, a[0], wgmma_matrix<128>(ring + stage * BYTES), true);
    if (fault == TOUCHES_OPERAND_EARLY) a[0][0] = 0x3f803f80;
    if (fault != MISSING_PRODUCT_COMMIT) wgmma_commit();
    if (fault == TOUCHES_SUM_EARLY) d[5] += 1.0f;
    if (fault == FREED_TOO_EARLY && lane_id() == 0) mbarrier_arrive(empty + stage);
    if (fault != MISSING_PRODUCT_WAIT || step < steps - 1) wgmma_wait<0>(d, a);
    a[0][0] = 0;
    if (fault == FREED_TOO_EARLY || (fault == MISSING_ARRIVE && warp_id() == 2)) continue;
    if (lane_id() == 0) mbarrier_arrive(empty + stage);
    if (lane_id() == 1 && fault == TOO_MANY_ARRIVALS) mbarrier_arrive(empty + stage);
  }
  for (int i = 0; i < 32; i++)
    c[(warp_id() * 16 + lane_id() / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane_id() % 4 * 2 + i % 2] = d[i];
#else
  __trap();
#endif
}
