// Runs the kernels of faults.cu and hopper_faults.cu with one planted bug, over several seeds. What is noticed is printed; scripts/test-host-layer.sh knows what
// each build has to notice.
#include <cstring>

#include "check.h"
#include "../half.h"
#include "faults.h"
#include "tile_map.h"

namespace {

constexpr int BLOCKS = 3, N = 256;

const char* const NAMES[FAULTS] = {
    "none",           "reads-past-global", "writes-past-global", "reads-past-shared",   "copies-outside-shared", "ldmatrix-outside-shared",
    "misaligned-pack", "misaligned-vector", "misaligned-ldmatrix", "missing-commit",     "missing-wait",          "ends-while-copying", "missing-barrier",
    "missing-warp-barrier", "missing-fence", "overwrites-too-early", "blocks-race",      "divergent-barrier",     "returns-early",
    "divergent-shuffle", "some-lanes-shuffle", "wrong-mask", "uninitialised-sum",
    "missing-tile-wait", "wrong-parity", "missing-arrive", "too-many-arrivals", "filled-too-early", "freed-too-early", "missing-expect",
    "expects-too-much", "uninitialised-mbarrier", "missing-barrier-after-init", "tile-outside-shared", "tile-past-global", "misaligned-tile",
    "ends-while-loading", "missing-product-fence", "missing-product-commit", "missing-product-wait", "touches-sum-early", "touches-operand-early",
    "three-warps-multiply",
};

// Empty, or what was noticed.
std::string run_tile(Fault fault, uint64_t seed) {
  Device<float> x(BLOCKS * N), y(BLOCKS * N), total(1);
  Device<unsigned> arrived(1);
  arrived[0] = 0;
  for (int i = 0; i < BLOCKS * N; i++) x[i] = float(i * 37 % 101);
  std::string message =
      launch("selftest_fault", {BLOCKS, 64, (N + 64) * sizeof(float)}, seed, y.get(), x.get(), total.get(), arrived.get(), int(fault));
  if (!message.empty()) return "reported: " + message;
  float sum = 0;
  for (int block = 0; block < BLOCKS; block++) {
    for (int i = 0; i < N; i++) {
      float want = x[block * N + i] + x[block * N + N - 1 - i];
      sum += want;
      if (!(y[block * N + i] == want)) return "wrong: y[" + std::to_string(block * N + i) + "] = " + std::to_string(y[block * N + i]);
    }
  }
  return total[0] == sum ? "" : "wrong: total";
}

std::string run_ring(Fault fault, uint64_t seed) {
  constexpr int STEPS = 5;
  Device<float> x(STEPS * 64), y(64);
  for (int i = 0; i < STEPS * 64; i++) x[i] = float(i * 37 % 101);
  std::string message = launch(fault == UNINITIALISED_SUM ? "selftest_ring_unset" : "selftest_ring", {1, 64, 64 * sizeof(float)}, seed, y.get(), x.get(), STEPS, int(fault));
  if (!message.empty()) return "reported: " + message;
  for (int i = 0; i < 64; i++) {
    float want = 0;
    for (int step = 0; step < STEPS; step++) want += x[step * 64 + 63 - i];
    if (!(y[i] == want)) return "wrong: y[" + std::to_string(i) + "] = " + std::to_string(y[i]);
  }
  return "";
}

std::string run_hopper(Fault fault, uint64_t seed) {
  constexpr int STEPS = 6, TILE = 64 * 64;
  Device<__nv_bfloat16> x(STEPS * TILE);
  Device<float> c(TILE);
  for (int i = 0; i < STEPS * TILE; i++) x[i] = __float2bfloat16(float(i * 37 % 101 - 50));
  // For tile-past-global the map says that there is one more.
  host::TileMap map = tile_map(x.get(), 2, {64, 64, STEPS + 1}, {64, 64, 1}, 128);
  std::string message = launch("selftest_hopper_fault", {1, 160, 2 * TILE * 2 + 32}, seed, c.get(), map, STEPS, int(fault));
  if (!message.empty()) return "reported: " + message;
  for (int i = 0; i < TILE; i++) {
    float want = 0;
    for (int step = 0; step < STEPS; step++)
      for (int k = 0; k < 64; k++)
        want += __bfloat162float(x[step * TILE + i / 64 * 64 + k]) * __bfloat162float(x[step * TILE + i % 64 * 64 + k]);
    if (!(c[i] == want)) return "wrong: c[" + std::to_string(i) + "] = " + std::to_string(c[i]);
  }
  return "";
}

std::string run(Fault fault, uint64_t seed) {
  if (fault >= MISSING_TILE_WAIT) return run_hopper(fault, seed);
  if (fault == OVERWRITES_TOO_EARLY || fault == UNINITIALISED_SUM) return run_ring(fault, seed);
  std::string noticed = run_tile(fault, seed);
  if (noticed.empty() && fault == NO_FAULT) noticed = run_ring(fault, seed);
  return noticed.empty() && fault == NO_FAULT ? run_hopper(fault, seed) : noticed;
}

}  // namespace

// Exit codes. 0: nothing noticed in any seed. 3: noticed. 2: no such fault. 4: the layer did not recover. A sanitizer ends the process in its own way.
int run_fault(const char* name) {
  for (int fault = 0; fault < FAULTS; fault++) {
    if (strcmp(name, NAMES[fault])) continue;
    bool noticed = false;
    for (uint64_t seed = 0; seed < 8; seed++) {
      std::string what = run(Fault(fault), seed);
      if (!what.empty()) printf("seed %d: %s\n", int(seed), what.c_str());
      noticed |= !what.empty();
      // After a fault the layer works as before.
      what = run(NO_FAULT, seed);
      check(what.empty(), "without a bug, after one: " + what);
    }
    return failures ? 4 : noticed ? 3 : 0;
  }
  return 2;
}

void list_faults() {
  for (const char* name : NAMES) puts(name);
}
