// Shuffles and votes. They move registers and, as on the device, order no memory: only __syncwarp does.
#pragma once
#include "scheduler.h"

namespace host {

// Every lane of mask hands over a pointer to its operands; the last to come runs combine(void* lane[32], unsigned mask) for all.
template <class Combine>
inline void warp_operation(const char* operation, unsigned mask, void* operands, Location at, Combine combine) {
  Quiet quiet;
  Warp* warp = arrive(operation, mask, operands, at);
  if (!warp) return;
  combine(warp->lane, warp->mask);
  depart(*warp);
}

// Every lane names the lane that it reads, within its segment of width lanes; out of the segment: it keeps its own value.
template <class T>
inline T shuffle(const char* operation, unsigned mask, T value, int from, int width, Location at) {
  struct Operands {
    T in, out;
    int from;  // may differ from lane to lane
  };
  int lane_id = self().id % 32, segment = lane_id & ~(width - 1);
  Operands mine{value, value, from < 0 || from >= width ? lane_id : segment + from};
  warp_operation(operation, mask, &mine, at, [=](void** lane, unsigned lanes) {
    for (int i = 0; i < 32; i++) {
      if (!(lanes >> i & 1)) continue;
      auto& to = *static_cast<Operands*>(lane[i]);
      if (!(lanes >> to.from & 1)) fail(std::string(operation) + " reads a lane that is not in its mask", at);
      to.out = static_cast<Operands*>(lane[to.from])->in;
    }
  });
  return mine.out;
}

inline int lane_in_segment(int width) { return self().id % 32 & (width - 1); }

}  // namespace host

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_sync", mask, value, from & (width - 1), width, at);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_xor_sync", mask, value, host::lane_in_segment(width) ^ bits, width, at);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_down_sync", mask, value, host::lane_in_segment(width) + int(by), width, at);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_up_sync", mask, value, host::lane_in_segment(width) - int(by), width, at);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, host::Location at = host::Location::current()) {
  struct Operands {
    bool in;
    unsigned out;
  } mine{predicate != 0, 0};
  host::warp_operation("__ballot_sync", mask, &mine, at, [](void** lane, unsigned lanes) {
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
      if (lanes >> i & 1) votes |= unsigned(static_cast<Operands*>(lane[i])->in) << i;
    for (int i = 0; i < 32; i++)
      if (lanes >> i & 1) static_cast<Operands*>(lane[i])->out = votes;
  });
  return mine.out;
}
inline int __any_sync(unsigned mask, int predicate, host::Location at = host::Location::current()) { return __ballot_sync(mask, predicate, at) != 0; }
inline int __all_sync(unsigned mask, int predicate, host::Location at = host::Location::current()) { return __ballot_sync(mask, !predicate, at) == 0; }
