#include "hopper.h"

#include "half.h"
#include "tensor_core.h"

namespace host {
namespace {

// Depth of a product: 32 bytes of each row.
int depth_of(const Product& p) { return p.int8 ? 32 : 16; }
// A NaN that becomes another one by arithmetic.
constexpr uint32_t POISON = 0xffbfffff;

Products& mine() { return machine.products[self().id / 32]; }
// For publish and observe: what a lane has read for its warp comes before what follows the wait.
char* tag() { return &machine.tags[2 + 2 * machine.warps.size() + self().id / 32]; }

// A row of d: which lane has column c of row r, and where.
int lane_with(int r, int c) { return r % 8 * 4 + c % 8 / 2; }
int index_in_lane(int r, int c) { return c / 8 * 4 + r / 8 * 2 + c % 2; }

// The elements of 16 bytes at this offset of shared memory, before the swizzle: eight bf16 or sixteen int8.
void read_chunk(float* out, bool int8, uint32_t place, unsigned row, Location at) {
  place ^= (place >> 7 & (row / 16 - 1)) << 4;
  if (place + 16 > machine.shared_bytes) fail("wgmma reads outside the block's shared memory", at);
  uint64_t words[2];
  {
    Loud loud;
    for (int i = 0; i < 2; i++) words[i] = reinterpret_cast<const volatile uint64_t*>(machine.shared + place)[i];
  }
  if (int8)
    for (int i = 0; i < 16; i++) out[i] = int8_t(words[i / 8] >> 8 * (i % 8));
  else
    for (int i = 0; i < 8; i++) out[i] = __builtin_bit_cast(float, uint32_t(words[i / 4] >> 16 * (i % 4)) << 16);
}

// Rows first.. of an operand, as out[k][rows]: 9.7.15.5.1.2 (hopper.cuh, wgmma_matrix).
void read_matrix(float* out, bool int8, Operand operand, int first, int rows, Location at) {
  const uint64_t d = operand.descriptor;
  const uint32_t start = (d & 0x3fff) << 4, leading = (d >> 16 & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
  const unsigned mode = d >> 62, row = mode == 1 ? 128 : mode == 2 ? 64 : 32;
  if (mode == 0 || (d >> 49 & 7)) fail("wgmma without a swizzle or with a base offset: not supported here", at);
  float chunk[16];
  if (operand.mn_major) {
    const int chunks = row / 16;
    for (int k = 0; k < 16; k++)
      for (int r = 0; r < rows; r += 8) {
        const int c = (first + r) / 8;
        read_chunk(out + k * rows + r, int8, start + c / chunks * leading + c % chunks * 16 + k % 8 * row + k / 8 * stride, row, at);
      }
    return;
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < 2; c++) {
      read_chunk(chunk, int8, start + (first + r) / 8 * stride + (first + r) % 8 * row + c * 16, row, at);
      const int elements = int8 ? 16 : 8;
      for (int i = 0; i < elements; i++) out[(elements * c + i) * rows + r] = chunk[i];
    }
}

void read_registers(float* out, const uint32_t* const* a) {
  for (int lane = 0; lane < 32; lane++)
    for (int r = 0; r < 4; r++)
      for (int e = 0; e < 2; e++)
        out[(lane % 4 * 2 + r / 2 * 8 + e) * 16 + lane / 4 + r % 2 * 8] = __builtin_bit_cast(float, a[lane][r] >> 16 * e << 16);
}

void read_operands(Issued& issued) {
  const Product& p = issued.product;
  issued.a_values.resize(depth_of(p) * 16);
  issued.b_values.resize(depth_of(p) * p.n);
  if (p.a_registers) read_registers(issued.a_values.data(), issued.a);
  else read_matrix(issued.a_values.data(), p.int8, p.a, self().id / 32 % 4 * 16, 16, issued.at);
  read_matrix(issued.b_values.data(), p.int8, p.b, 0, p.n, issued.at);
  issued.read = true;
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int FourInts __attribute__((vector_size(16), aligned(4), may_alias));

// value[16][n] += a^T b, a [depth][16], b [depth][n]; the terms of a product are added up first, which is exact for those of int8. Only this
// layer's own memory: not looked at.
template <class To>
__attribute__((no_sanitize("address", "undefined", "thread"))) void multiply(uint32_t* value, const float* a, const float* b, int n, int depth) {
  for (int m = 0; m < 16; m++)
    for (int c = 0; c < n; c += 8) {
      Four sum[2] = {};
      for (int k = 0; k < depth; k++) {
        const float x = a[k * 16 + m];
        sum[0] += x * *reinterpret_cast<const Four*>(b + k * n + c);
        sum[1] += x * *reinterpret_cast<const Four*>(b + k * n + c + 4);
      }
      *reinterpret_cast<To*>(value + m * n + c) += __builtin_convertvector(sum[0], To);
      *reinterpret_cast<To*>(value + m * n + c + 4) += __builtin_convertvector(sum[1], To);
    }
}

template <class List>
bool named(const List& list, const void* registers) {
  return !registers || std::any_of(list.begin(), list.end(), [=](const Registers& r) { return r.hold(registers); });
}

Accumulator* find(Products& products, const void* d) {
  for (Accumulator& a : products.accumulators)
    if (a.lane[0] == d) return &a;
  return nullptr;
}

// Takes what the lanes have, and leaves NaN there until the wait.
Accumulator& begin_sum(Products& products, void** lane, int n) {
  Accumulator a{{}, n, 0, std::vector<uint32_t>(16 * n)};
  for (int i = 0; i < 32; i++) a.lane[i] = static_cast<char*>(static_cast<Product*>(lane[i])->d);
  for (int r = 0; r < 16; r++)
    for (int c = 0; c < n; c++) {
      char* d = a.lane[lane_with(r, c)] + 4 * index_in_lane(r, c);
      memcpy(&a.value[r * n + c], d, 4);
      memcpy(d, &POISON, 4);
    }
  products.accumulators.push_back(std::move(a));
  return products.accumulators.back();
}

void end_sum(Products& products, Accumulator* a, Location issued) {
  for (int r = 0; r < 16; r++)
    for (int c = 0; c < a->n; c++) {
      char* d = a->lane[lane_with(r, c)] + 4 * index_in_lane(r, c);
      if (memcmp(d, &POISON, 4)) fail("sums of a wgmma are written before its wgmma_wait", issued);
      memcpy(d, &a->value[r * a->n + c], 4);
    }
  products.accumulators.erase(products.accumulators.begin() + (a - products.accumulators.data()));
}

// All lanes and all four warps must say the same.
void check_agreement(Products& products, void** lane, Location at) {
  auto order_of = [&](const void* lane) {
    const Product& p = *static_cast<const Product*>(lane);
    return Order{p.a.descriptor, p.b.descriptor, p.n, at.line(), p.a_registers != nullptr, p.accumulate};
  };
  const Order order = order_of(lane[0]);
  for (int i = 1; i < 32; i++)
    if (order_of(lane[i]) != order) fail("wgmma: lanes of a warp give different operands", at);
  std::vector<Order>& log = machine.warpgroups[self().id / 128];
  if (products.count == log.size()) log.push_back(order);
  else if (log[products.count] != order) fail("wgmma: warps of a warpgroup issue different products", at);
  products.count++;
}

}  // namespace

void Products::clear() { *this = Products{}; }

uint32_t shared_offset(const void* p, Location at) {
  check_shared(p, 16, "wgmma_matrix", at);
  check_aligned(p, 16, "wgmma_matrix", at);
  return uint32_t(static_cast<const char*>(p) - machine.shared);
}

void wgmma_fence(std::initializer_list<Registers> registers) {
  Quiet quiet;
  self().fenced.insert(self().fenced.end(), registers);
}

void wgmma(const char* operation, Product product, Location at) {
  Quiet quiet;
  if (self().id / 128 * 128 + 128 > machine.threads.size()) fail(std::string(operation) + " needs the 128 threads of a warpgroup", at);
  // Stricter than the device, which asks for it only after registers have been touched: after a wait they will have been.
  if (!named(self().fenced, product.d) || !named(self().fenced, product.a_registers))
    fail(std::string(operation) + " without a wgmma_fence, since the start or the last wait, that names its registers", at);
  Warp* warp = arrive(operation, ALL_LANES, &product, at);
  if (!warp) return;
  Products& products = mine();
  check_agreement(products, warp->lane, at);
  Accumulator* sum = find(products, static_cast<Product*>(warp->lane[0])->d);
  if (!sum) sum = &begin_sum(products, warp->lane, product.n);
  if (sum->n != product.n) fail(std::string(operation) + " adds to registers that a product of another shape adds to", at);
  sum->users++;
  Issued issued{*static_cast<Product*>(warp->lane[0]), {}, false, {}, {}, at};
  for (int i = 0; i < 32; i++) issued.a[i] = static_cast<Product*>(warp->lane[i])->a_registers;
  if (next_random() % 2) {
    read_operands(issued);
    publish(tag());
  }
  products.issued.push_back(std::move(issued));
  depart(*warp);
}

// Lane 0 speaks for its warp: products gather all lanes, so none is ahead by more than this.
void wgmma_commit() {
  Quiet quiet;
  if (self().id % 32 == 0) mine().group_ends.push_back(mine().issued.size());
}

void wgmma_wait(int groups_left, std::initializer_list<Registers> registers, Location at) {
  Quiet quiet;
  if (Warp* warp = arrive("wgmma_wait", ALL_LANES, &registers, at)) {
    if (next_random() % 2) wait_in(State::at_products, at);  // takes its time: others may do what they must not before it is over
    observe(tag());
    Products& products = mine();
    size_t done = 0;
    while (products.group_ends.size() > size_t(groups_left)) {
      done = products.group_ends.front();
      products.group_ends.erase(products.group_ends.begin());
    }
    for (size_t i = 0; i < done; i++) {
      Issued& issued = products.issued[i];
      if (!issued.read) read_operands(issued);
      const auto& list = *static_cast<std::initializer_list<Registers>*>(warp->lane[0]);
      if (!named(list, issued.product.d) || !named(list, issued.product.a_registers))
        fail("wgmma_wait does not name the registers of a product that is over, which was issued at line " + std::to_string(issued.at.line()), at);
      Accumulator* sum = find(products, issued.product.d);
      const Product& p = issued.product;
      if (!p.accumulate) std::fill(sum->value.begin(), sum->value.end(), 0);
      (p.int8 ? multiply<FourInts> : multiply<Four>)(sum->value.data(), issued.a_values.data(), issued.b_values.data(), p.n, depth_of(p));
      if (--sum->users == 0) end_sum(products, sum, issued.at);
    }
    products.issued.erase(products.issued.begin(), products.issued.begin() + done);
    for (size_t& end : products.group_ends) end -= done;
    if (done)
      for (unsigned i = 0; i < 32; i++) machine.threads[self().id / 32 * 32 + i].fenced.clear();
    publish(tag());
    depart(*warp);
  }
  observe(tag());
}

bool finish_products(bool force) {
  bool any = false;
  for (Thread& thread : machine.threads) {
    if (thread.state != State::at_products || (!force && next_random() % 2)) continue;
    thread.state = State::running;
    any = true;
    force = false;
  }
  return any;
}

std::string check_warpgroups() {
  for (size_t warp = 0; warp < machine.products.size(); warp++)
    if (machine.products[warp].count != machine.warpgroups[warp / 4].size())
      return "warps of warpgroup " + std::to_string(warp / 4) + " have not all issued the same number of wgmma";
  return "";
}

}  // namespace host
