// Hopper's units against plain loops: tiles of every swizzle and rank, inside and over every edge; products of every shape.
#include <random>

#include "../half.h"
#include "check.h"
#include "tile_map.h"

namespace {

struct Tile {
  int rank, element;
  std::initializer_list<unsigned> dims, box;
  unsigned swizzle;
};

void load(const Tile& t, const int (&at)[4], uint64_t seed) {
  size_t elements = 1, bytes = t.element;
  for (unsigned n : t.dims) elements *= n;
  for (unsigned n : t.box) bytes *= n;
  Device<uint8_t> x(elements * t.element);
  Device<uint32_t> out(bytes / 4);
  std::mt19937 random(seed);
  for (size_t i = 0; i < x.size(); i++) x[i] = uint8_t(random());
  host::TileMap map = tile_map(x.get(), t.element, t.dims, t.box, t.swizzle);
  launch_well("selftest_tile_load", {1, 64, bytes + 8}, seed, out.get(), map, t.rank, at[0], at[1], at[2], at[3], int(bytes));
  const auto* got = reinterpret_cast<const uint8_t*>(out.get());
  const size_t row = t.box.begin()[0] * t.element;
  for (size_t i = 0; i < bytes; i++) {
    // The element that byte i of the box belongs to.
    size_t rest = i / t.element, from = 0, stride = 1;
    bool inside = true;
    for (int d = 0; d < t.rank; d++) {
      int64_t k = at[d] + int64_t(rest % t.box.begin()[d]);
      rest /= t.box.begin()[d];
      inside &= k >= 0 && k < t.dims.begin()[d];
      from += k * stride;
      stride *= t.dims.begin()[d];
    }
    // hopper.cuh: where a row's chunks lie.
    size_t r = i / row, chunk = i % row / 16;
    if (t.swizzle == 128) chunk ^= r % 8;
    if (t.swizzle == 64) chunk ^= r / 2 % 4;
    if (t.swizzle == 32) chunk ^= r / 4 % 2;
    int want = inside ? x[from * t.element + i % t.element] : 0;
    check(got[r * row + chunk * 16 + i % 16] == want,
          "tile of rank " + std::to_string(t.rank) + ", swizzle " + std::to_string(t.swizzle) + " at byte " + std::to_string(i));
  }
}

void tiles(uint64_t seed) {
  const Tile all[] = {
      {2, 2, {72, 50}, {64, 24}, 128},        {2, 2, {40, 50}, {32, 40}, 64},      {2, 2, {24, 50}, {16, 24}, 32},
      {2, 1, {144, 30}, {128, 16}, 128},      {2, 4, {8, 20}, {4, 12}, 0},         {3, 2, {72, 3, 40}, {64, 1, 32}, 128},
      {3, 2, {40, 5, 7}, {32, 2, 4}, 64},     {4, 2, {64, 3, 4, 9}, {64, 1, 2, 8}, 128},
  };
  for (const Tile& t : all) {
    load(t, {0, 0, 0, 0}, seed);
    load(t, {8, 1, 1, 1}, seed);     // over the end of some
    load(t, {-8, -1, 0, -3}, seed);  // over the beginning
    load(t, {0, 2, 38, 6}, seed);
    load(t, {200, 0, 0, 0}, seed);   // all outside
  }
}

void rings(uint64_t seed) {
  for (int stages : {1, 2, 5})
    for (int steps : {1, 7, 40}) {
      Device<int> out(2);
      launch_well("selftest_mbarrier", {1, 96, size_t(20 * stages)}, seed, out.get(), steps, stages);
      check(out[0] == steps * (steps + 1) / 2 && out[1] == out[0], "a ring of " + std::to_string(stages) + " stages");
    }
}

void products(uint64_t seed, int n, int row, int a_major, int b_major) {
  constexpr int DEPTH = 64;
  std::mt19937 random(seed * 7 + n);
  Device<__nv_bfloat16> a(64 * DEPTH), a_tensor(64 * DEPTH), b(n * DEPTH), b_tensor(n * DEPTH);
  for (size_t i = 0; i < a.size(); i++) a[i] = __float2bfloat16(int(random() % 129) - 64);  // sums of integers are exact
  for (size_t i = 0; i < b.size(); i++) b[i] = __float2bfloat16(int(random() % 129) - 64);
  for (int m = 0; m < 64; m++)
    for (int k = 0; k < DEPTH; k++) a_tensor[a_major ? k * 64 + m : m * DEPTH + k] = a[m * DEPTH + k];
  for (int i = 0; i < n; i++)
    for (int k = 0; k < DEPTH; k++) b_tensor[b_major ? k * n + i : i * DEPTH + k] = b[i * DEPTH + k];
  const unsigned width = row / 2, wide = n, deep = DEPTH;
  host::TileMap a_map = tile_map(a_tensor.get(), 2, {64, 64}, {width, 64}, row);
  host::TileMap b_map = b_major ? tile_map(b_tensor.get(), 2, {wide, deep}, {width, deep}, row)
                                : tile_map(b_tensor.get(), 2, {deep, wide}, {width, wide}, row);
  Device<float> c(64 * n);
  launch_well("selftest_wgmma", {1, 128, size_t((64 + n) * DEPTH * 2 + 8)}, seed, c.get(), a_map, b_map, a.get(), n, row, a_major, b_major);
  for (int m = 0; m < 64; m++)
    for (int i = 0; i < n; i++) {
      float want = 0;
      for (int k = 0; k < DEPTH; k++) want += __bfloat162float(a[m * DEPTH + k]) * __bfloat162float(b[i * DEPTH + k]);
      check(c[m * n + i] == want, "wgmma n " + std::to_string(n) + ", rows of " + std::to_string(row) + " bytes, majors " + std::to_string(a_major) +
                                      std::to_string(b_major) + " at " + std::to_string(m) + "," + std::to_string(i));
    }
}

void products_of_int8(uint64_t seed, unsigned n) {
  constexpr unsigned DEPTH = 128;
  std::mt19937 random(seed * 7 + n);
  Device<int8_t> a(64 * DEPTH), b(n * DEPTH);
  for (size_t i = 0; i < a.size(); i++) a[i] = int8_t(random());
  for (size_t i = 0; i < b.size(); i++) b[i] = int8_t(random());
  host::TileMap a_map = tile_map(a.get(), 1, {DEPTH, 64}, {DEPTH, 64}, 128), b_map = tile_map(b.get(), 1, {DEPTH, n}, {DEPTH, n}, 128);
  Device<int> c(64 * n);
  launch_well("selftest_wgmma_s8", {1, 128, (64 + n) * DEPTH + 8}, seed, c.get(), a_map, b_map, int(n));
  for (unsigned m = 0; m < 64; m++)
    for (unsigned i = 0; i < n; i++) {
      int want = 0;
      for (unsigned k = 0; k < DEPTH; k++) want += a[m * DEPTH + k] * b[i * DEPTH + k];
      check(c[m * n + i] == want, "wgmma of int8, n " + std::to_string(n) + " at " + std::to_string(m) + "," + std::to_string(i));
    }
}

}  // namespace

void test_hopper() {
  for (uint64_t seed = 0; seed < 4; seed++) {
    tiles(seed);
    rings(seed);
    for (unsigned n : {128, 256}) products_of_int8(seed, n);
    for (int n : {64, 80, 96, 128})
      for (int row : {128, 64, 32})
        for (int majors = 0; majors < 4; majors++)
          if (!(majors & 1) || n % (row / 2) == 0) products(seed, n, row, majors / 2, majors & 1);
  }
}
