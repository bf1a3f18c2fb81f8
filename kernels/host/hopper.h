// Hopper's asynchronous units: mbarriers (mbarrier.cpp), tile loads (tile_load.cpp), products of a warpgroup (wgmma.cpp). hopper.cuh says what
// they do. What is asynchronous there is late here: tiles arrive in an order of the seed while threads wait, sums appear only at the wait;
// until then their places are NaN. What of a product's operands is read when it is issued and what at the wait, the seed decides as well.
#pragma once
#include <initializer_list>
#include <string>
#include <vector>

#include "types.h"

namespace host {

// --- mbarrier ---

struct Mbarrier {  // the 8 bytes, as far as they are anyone's business: nothing here
  uint64_t phase : 1, count : 20, pending : 20;
  int64_t bytes : 21;  // announced and not there yet, or there and not announced yet
  uint64_t live : 2;
};
static_assert(sizeof(Mbarrier) == 8);

void mbarrier_init(void* barrier, int count, Location at);
void mbarrier_invalidate(void* barrier, Location at);
void mbarrier_arrive(void* barrier, int bytes, Location at);
void mbarrier_wait(void* barrier, int parity, Location at);
// Called by the scheduler: bytes of a tile have come. A fault or nothing.
std::string mbarrier_complete(void* barrier, int bytes);
// For the report of a deadlock.
std::string describe_mbarrier(const void* barrier);

// --- tile loads ---

// What stands in the place of a CUtensorMap; src/tensor/cuda/host.rs writes it. Dimensions from the innermost on.
struct alignas(64) TileMap {
  static constexpr uint32_t MAGIC = 0x70616d74;
  uint64_t base;
  uint64_t strides[4];  // bytes, of dimensions 1 and on
  uint32_t dims[5];     // elements
  uint32_t box[5];
  uint32_t rank;
  uint32_t element;  // bytes
  uint32_t swizzle;  // bytes: 128, 64, 32; 0: none
  uint32_t magic;
};
static_assert(sizeof(TileMap) == 128);

struct TileLoad {  // under way
  std::vector<uint32_t> words;  // the box, read when issued, so that a fault is reported at the line that asked for it
  char* to;
  unsigned row, swizzle;  // bytes
  void* barrier;
  std::string where;
};

void tile_load(void* to, const void* map, const int* coordinates, int rank, void* barrier, Location at);
// Called by the scheduler: some loads arrive, at least one if `force` and there is one. False: none did.
bool deliver_tiles(bool force);

// --- wgmma ---

struct Operand {  // in shared memory
  uint64_t descriptor = 0;
  bool mn_major = false;
};

struct Product {  // of one lane
  void* d;  // float, or int
  int n;
  const uint32_t* a_registers;  // or null, then a
  Operand a, b;
  bool accumulate;
  bool int8 = false;  // otherwise bf16
};

struct Order {  // what all lanes of a warp and all warps of a warpgroup must agree on
  uint64_t a, b;
  int n;
  unsigned line;
  bool a_in_registers, accumulate;
  bool operator==(const Order&) const = default;
};

struct Accumulator {  // of a warp, while products are under way that add to it
  char* lane[32];
  int n, users;
  std::vector<uint32_t> value;  // [16][n] of float or int
};

struct Issued {  // of a warp
  Product product;
  const uint32_t* a[32];
  bool read;               // the operands have been read: a_values [k][16 m], b_values [k][n]
  std::vector<float> a_values, b_values;
  Location at;
};

struct Products {  // of a warp
  std::vector<Issued> issued;  // oldest first
  std::vector<size_t> group_ends;
  std::vector<Accumulator> accumulators;
  size_t count = 0;  // issued in this block
  void clear();
};

void wgmma(const char* operation, Product product, Location at);
struct Registers {
  const void* begin;
  size_t bytes;
  bool hold(const void* p) const { return p >= begin && p < static_cast<const char*>(begin) + bytes; }
};
void wgmma_fence(std::initializer_list<Registers> registers);
void wgmma_commit();
void wgmma_wait(int groups_left, std::initializer_list<Registers> registers, Location at);
// Called by the scheduler: some waits for products are over, as for deliver_tiles.
bool finish_products(bool force);
// The four warps of each warpgroup have issued the same; empty if so.
std::string check_warpgroups();

// The place of p in shared memory, as descriptors have it.
uint32_t shared_offset(const void* p, Location at);

}  // namespace host
