// Atomics, relaxed as on the device: they order no other access. Use __threadfence for that.
#pragma once
#include "types.h"

namespace host {
// *p = change(*p) in one step; returns the old value.
template <class T, class Change>
inline T atomic_change(T* p, Change change) {
  T seen, wanted;
  __atomic_load(p, &seen, __ATOMIC_RELAXED);
  do wanted = change(seen);
  while (!__atomic_compare_exchange(p, &seen, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return seen;
}
}  // namespace host

template <class T>
inline T atomicAdd(T* p, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T old) { return T(old + value); });
}
template <class T>
inline T atomicSub(T* p, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T old) { return T(old - value); });
}
template <class T>
inline T atomicMax(T* p, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T old) { return old < value ? value : old; });
}
template <class T>
inline T atomicMin(T* p, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T old) { return value < old ? value : old; });
}
template <class T>
inline T atomicOr(T* p, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T old) { return T(old | value); });
}
template <class T>
inline T atomicAnd(T* p, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T old) { return T(old & value); });
}
template <class T>
inline T atomicExch(T* p, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T) { return value; });
}
template <class T>
inline T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return host::atomic_change(p, [=](T old) { return old == expected ? value : old; });
}
// Counts up to limit, then from 0 again.
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return host::atomic_change(p, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}
