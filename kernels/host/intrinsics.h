// Per-thread functions of the device: arithmetic, bits, cached loads. Fast approximations are exact here: test tolerances must not lean on it.
#pragma once
#include "types.h"

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? fminf(x, 1.0f) : 0.0f; }  // NaN gives 0

namespace host {
// Float to int saturates on the device and NaN gives 0; in C++ it is undefined.
inline int saturate_to_int(float x) {
  if (x != x) return 0;
  return x >= 2147483648.0f ? INT32_MAX : x < -2147483648.0f ? INT32_MIN : int(x);
}
}  // namespace host
inline int __float2int_rn(float x) { return host::saturate_to_int(rintf(x)); }
inline int __float2int_rz(float x) { return host::saturate_to_int(truncf(x)); }
inline int __float2int_rd(float x) { return host::saturate_to_int(floorf(x)); }
inline int __float2int_ru(float x) { return host::saturate_to_int(ceilf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
// The sum of four products of signed bytes, plus c.
inline int __dp4a(int a, int b, int c) {
  unsigned sum = unsigned(c);
  for (int byte = 0; byte < 4; byte++) sum += unsigned(int8_t(a >> 8 * byte) * int8_t(b >> 8 * byte));
  return int(sum);
}

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline T __ldcg(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <class T>
inline void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}
