// Tensor maps for the self-tests.
#pragma once
#include <initializer_list>

#include "../hopper.h"

// Of a dense tensor of `element` bytes; dimensions and box from the innermost on.
inline host::TileMap tile_map(const void* base, unsigned element, std::initializer_list<unsigned> dims, std::initializer_list<unsigned> box,
                              unsigned swizzle) {
  host::TileMap map{};
  map.base = reinterpret_cast<uint64_t>(base);
  map.rank = unsigned(dims.size());
  map.element = element;
  map.swizzle = swizzle;
  map.magic = host::TileMap::MAGIC;
  uint64_t stride = element;
  for (unsigned d = 0; d < map.rank; d++) {
    map.dims[d] = dims.begin()[d];
    map.box[d] = box.begin()[d];
    stride *= map.dims[d];
    if (d < 4) map.strides[d] = stride;
  }
  return map;
}
