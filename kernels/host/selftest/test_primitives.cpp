// Each primitive against a plain loop.
#include <chrono>
#include <random>

#include "../half.h"
#include "check.h"

namespace {

void products(uint64_t seed) {
  std::mt19937 random(seed);
  Device<__nv_bfloat16> a(16 * 16), b(16 * 8);
  Device<float> c(16 * 8);
  for (size_t i = 0; i < a.size(); i++) a[i] = __float2bfloat16(int(random() % 129) - 64);  // sums of integers are exact
  for (size_t i = 0; i < b.size(); i++) b[i] = __float2bfloat16(int(random() % 129) - 64);
  launch_well("selftest_mma_bf16", {1, 32, 1024}, seed, c.get(), a.get(), b.get());
  Device<int8_t> a8(16 * 32), b8(8 * 32);
  Device<int> c8(16 * 8);
  for (size_t i = 0; i < a8.size(); i++) a8[i] = int8_t(random());
  for (size_t i = 0; i < b8.size(); i++) b8[i] = int8_t(random());
  launch_well("selftest_mma_s8", {1, 32, 1024}, seed, c8.get(), a8.get(), b8.get());
  for (int m = 0; m < 16; m++) {
    for (int n = 0; n < 8; n++) {
      float want = 0;
      int want8 = 0;
      for (int k = 0; k < 16; k++) want += __bfloat162float(a[m * 16 + k]) * __bfloat162float(b[k * 8 + n]);
      for (int k = 0; k < 32; k++) want8 += a8[m * 32 + k] * b8[n * 32 + k];
      check(c[m * 8 + n] == want, "mma_bf16 at " + std::to_string(m) + "," + std::to_string(n));
      check(c8[m * 8 + n] == want8, "mma_s8 at " + std::to_string(m) + "," + std::to_string(n));
    }
  }
}

void ldmatrix(uint64_t seed) {
  Device<uint32_t> out(12 * 32);
  launch_well("selftest_ldmatrix", {1, 32, 512}, seed, out.get());
  for (int row = 0; row < 12; row++) {
    bool transposed = (row >= 4 && row < 8) || row >= 10;
    int matrix = row < 8 ? row % 4 : row % 2;
    for (int lane = 0; lane < 32; lane++) {
      int y = lane / 4, x = lane % 4 * 2;
      uint32_t low = matrix * 64 + (transposed ? x * 8 + y : y * 8 + x), high = low + (transposed ? 8 : 1);
      check(out[row * 32 + lane] == (low | high << 16), "ldmatrix register " + std::to_string(row) + " of lane " + std::to_string(lane));
    }
  }
}

void copies(uint64_t seed) {
  for (int n : {1, 4, 63, 64, 100, 256, 1000, 1024}) {
    for (int wide : {0, 1}) {
      if (wide && n % 4) continue;
      Device<uint32_t> x(n), out(n);
      for (int i = 0; i < n; i++) x[i] = i * 2654435761u;
      launch_well("selftest_cp_async", {1, 64, size_t(wide ? 2048 : 512)}, seed, out.get(), x.get(), n, wide);
      for (int i = 0; i < n; i++) check(out[i] == x[i], "cp.async of " + std::to_string(n) + " words at " + std::to_string(i));
    }
  }
}

void shuffles(uint64_t seed) {
  Device<int> out(18 * 32);
  launch_well("selftest_shuffle", {1, 32, 0}, seed, out.get());
  for (int lane = 0; lane < 32; lane++) {
    int row = 0;
    auto expect = [&](int want, const char* what) {
      check(out[row++ * 32 + lane] == want, std::string(what) + " in lane " + std::to_string(lane));
    };
    for (int width = 32; width >= 8; width /= 2) {
      int base = lane / width * width, in = lane % width;
      expect(10 * (base + (in ^ 5)), "__shfl_xor_sync");
      expect(10 * (in + 3 < width ? lane + 3 : lane), "__shfl_down_sync");
      expect(10 * (in >= 3 ? lane - 3 : lane), "__shfl_up_sync");
      expect(10 * (base + (7 + lane) % width), "__shfl_sync");
    }
    expect(int(0x49249249u), "__ballot_sync");
    expect(1, "__any_sync");
    expect(0, "__any_sync of none");
    expect(1, "__all_sync");
    expect(0, "__all_sync of some");
    if (lane < 8) expect(10 * (lane ^ 1), "__shfl_xor_sync of a part");
  }
}

void reductions(uint64_t seed) {
  for (unsigned threads : {32u, 64u, 96u, 1024u}) {
    Device<float> x(threads), out(3);
    float sum = 0, greatest = -INFINITY;
    for (unsigned i = 0; i < threads; i++) {
      x[i] = float(int(i * 37 % 101) - 200);
      sum += x[i];
      greatest = fmaxf(greatest, x[i]);
    }
    launch_well("selftest_reduce", {1, threads, 128}, seed, out.get(), x.get());
    check(out[0] == sum && out[1] == greatest && out[2] == float(threads), "reductions over " + std::to_string(threads) + " threads");
  }
}

void atomics(uint64_t seed) {
  constexpr int BLOCKS = 7;
  Device<int> counts(8), limits(2);
  Device<float> part(BLOCKS), total(1);
  Device<unsigned> arrived(1);
  for (int i = 0; i < 8; i++) counts[i] = 0;
  limits[0] = limits[1] = 5;
  arrived[0] = 0;
  launch_well("selftest_atomics", {BLOCKS, 64, 4}, seed, counts.get(), limits.get(), part.get(), arrived.get(), total.get());
  for (int i = 0; i < 8; i++) check(counts[i] == BLOCKS * 8, "atomicAdd");
  check(limits[0] == BLOCKS * 64 - 1 && limits[1] == 0, "atomicMax, atomicMin");
  check(arrived[0] == 0 && total[0] == BLOCKS * (BLOCKS + 1) / 2, "the last block's sum");
}

void indices(uint64_t seed) {
  dim3 grid(3, 2, 4), block(5, 3, 2);
  Device<int> out(24 * 30);
  launch_well("selftest_indices", {grid, block}, seed, out.get());
  for (int i = 0; i < 24 * 30; i++) {
    int b = i / 30, t = i % 30;
    int want = b / 6 << 20 | b / 3 % 2 << 16 | b % 3 << 12 | t / 15 << 8 | t / 5 % 3 << 4 | t % 5;
    check(out[i] == want, "indices at " + std::to_string(i));
  }
}

struct Odd {
  char bytes[5];
};

void arguments(uint64_t seed) {
  Device<double> out(7);
  launch_well("selftest_arguments", {1, 32}, seed, out.get(), int8_t(-3), __float2bfloat16(1.5f), 1 << 20, 0.25f, -(1LL << 40), 1e300,
              Odd{{1, 2, 3, 4, 5}});
  double want[] = {-3, 1.5, 1 << 20, 0.25, -double(1LL << 40), 1e300, 5};
  for (int i = 0; i < 7; i++) check(out[i] == want[i], "argument " + std::to_string(i));
}

void speed() {
  auto start = std::chrono::steady_clock::now();
  Device<float> out(16 * 256);
  launch_well("selftest_speed", {16, 256}, 1, out.get(), 500);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  printf("%.1f million warp operations' lanes a second\n", 16 * 256 * 500 / seconds / 1e6);
}

}  // namespace

void test_primitives() {
  for (uint64_t seed = 0; seed < 4; seed++) {
    products(seed);
    ldmatrix(seed);
    copies(seed);
    shuffles(seed);
    reductions(seed);
    atomics(seed);
    indices(seed);
    arguments(seed);
  }
  speed();
}
