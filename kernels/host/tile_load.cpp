#include "hopper.h"

#include "scheduler.h"

namespace host {
namespace {

unsigned box_bytes(const TileMap& map) {
  unsigned bytes = map.element;
  for (unsigned d = 0; d < map.rank; d++) bytes *= map.box[d];
  return bytes;
}

// What cuTensorMapEncodeTiled would refuse is refused when the map is made (host.rs).
void check(const TileMap& map, void* to, int rank, Location at) {
  Quiet quiet;
  if (map.magic != TileMap::MAGIC) fail("tile_load: the map is none of the host's", at);
  if (map.rank != unsigned(rank)) fail("tile_load of rank " + std::to_string(rank) + ", the map has " + std::to_string(map.rank), at);
  // Where patterns start at multiples of eight rows a descriptor needs no base offset: hopper.cuh asks for that.
  check_shared(to, box_bytes(map), "tile_load's destination", at);
  check_aligned(to, map.swizzle ? 8 * map.swizzle : 128, "tile_load's destination", at);
}

// The wider an access, the fewer there are; each is seen by the sanitizers.
void read(char* to, const char* from, size_t bytes) {
  if ((uintptr_t(from) | bytes) % 8 == 0)
    for (size_t i = 0; i < bytes; i += 8) {
      uint64_t word = *reinterpret_cast<const volatile uint64_t*>(from + i);
      memcpy(to + i, &word, 8);
    }
  else
    for (size_t i = 0; i < bytes; i++) to[i] = *const_cast<const volatile char*>(from + i);
}

// The rows of the box one after the other, zeros where it is outside the tensor.
void read_box(char* words, const TileMap& map, const int* coordinates) {
  const size_t row = size_t(map.box[0]) * map.element, rows = box_bytes(map) / row;
  const int64_t first = std::max(0, -coordinates[0]), last = std::min<int64_t>(map.box[0], int64_t(map.dims[0]) - coordinates[0]);
  memset(words, 0, row * rows);
  if (first >= last) return;
  for (size_t r = 0; r < rows; r++) {
    int64_t offset = (coordinates[0] + first) * map.element;
    bool inside = true;
    for (size_t d = 1, rest = r; d < map.rank; rest /= map.box[d], d++) {
      int64_t i = coordinates[d] + int64_t(rest % map.box[d]);
      inside &= i >= 0 && i < map.dims[d];
      offset += i * int64_t(map.strides[d - 1]);
    }
    if (inside) read(words + r * row + first * map.element, reinterpret_cast<const char*>(map.base + offset), (last - first) * map.element);
  }
}

void store(char* to, uint32_t word) { *reinterpret_cast<volatile uint32_t*>(to) = word; }

// Chunks of 16 bytes go where the swizzle has them: bits 4.. of the address are exchanged with bits 7...
void write_box(const TileLoad& load) {
  const uintptr_t mask = load.swizzle ? load.swizzle / 16 - 1 : 0;
  for (size_t i = 0; i < load.words.size(); i++) {
    uintptr_t place = load.to - machine.shared + 4 * i;
    place ^= (place >> 7 & mask) << 4;
    store(machine.shared + place, load.words[i]);
  }
}

}  // namespace

void tile_load(void* to, const void* from, const int* coordinates, int rank, void* barrier, Location at) {
  const TileMap& map = *static_cast<const TileMap*>(from);
  check(map, to, rank, at);
  const size_t words = box_bytes(map) / 4;
  TileLoad load{std::vector<uint32_t>(words), static_cast<char*>(to), map.box[0] * map.element, map.swizzle, barrier, ""};
  read_box(reinterpret_cast<char*>(load.words.data()), map, coordinates);
  // The copy engine writes when it likes, so whoever still reads what was there, or reads too early, is in a race with this thread.
  for (size_t i = 0; i < words; i++) store(load.to + 4 * i, 0xffffffff);
  check_shared(barrier, 8, "tile_load's mbarrier", at);
  Quiet quiet;
  load.where = std::string(at.file_name()) + ":" + std::to_string(at.line());
  publish(load.words.data());
  machine.loads.push_back(std::move(load));
}

bool deliver_tiles(bool force) {
  bool any = false;
  while (!machine.loads.empty() && (force || next_random() % 2)) {
    size_t i = next_random() % machine.loads.size();
    TileLoad load = std::move(machine.loads[i]);
    machine.loads.erase(machine.loads.begin() + i);
    observe(load.words.data());
    {
      Loud loud;
      write_box(load);
    }
    std::string fault = mbarrier_complete(load.barrier, int(load.words.size() * 4));
    if (!fault.empty()) machine.fault = std::string("kernel ") + machine.kernel_name + ": a tile that was loaded at " + load.where + " " + fault;
    any = true;
    force = false;
  }
  return any;
}

}  // namespace host
