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

// source(lane within its segment) names the lane that is read; out of the segment: the lane keeps its own value.
template <class T, class Source>
inline T shuffle(const char* operation, unsigned mask, T value, int width, Location at, Source source) {
  struct Operands {
    T in, out;
  } mine{value, value};
  warp_operation(operation, mask, &mine, at, [=](void** lane, unsigned lanes) {
    for (int i = 0; i < 32; i++) {
      if (!(lanes >> i & 1)) continue;
      int segment = i & ~(width - 1), from = source(i - segment);
      from = from < 0 || from >= width ? i : segment + from;
      if (!(lanes >> from & 1)) fail(std::string(operation) + " reads a lane that is not in its mask", at);
      static_cast<Operands*>(lane[i])->out = static_cast<Operands*>(lane[from])->in;
    }
  });
  return mine.out;
}

}  // namespace host

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_sync", mask, value, width, at, [=](int) { return from & (width - 1); });
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_xor_sync", mask, value, width, at, [=](int lane) { return lane ^ bits; });
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_down_sync", mask, value, width, at, [=](int lane) { return lane + int(by); });
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, host::Location at = host::Location::current()) {
  return host::shuffle("__shfl_up_sync", mask, value, width, at, [=](int lane) { return lane - int(by); });
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
