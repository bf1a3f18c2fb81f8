// bf16 and half against their definitions.
#include "../half.h"
#include "../intrinsics.h"
#include "check.h"

namespace {

float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }

// The value of a 16-bit pattern by its definition: sign, exponent bits, mantissa bits.
double value_of(uint16_t bits, int exponent_bits, int mantissa_bits) {
  int bias = (1 << (exponent_bits - 1)) - 1, exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  int mantissa = bits & ((1 << mantissa_bits) - 1);
  double sign = bits >> 15 ? -1 : 1, fraction = double(mantissa) / (1 << mantissa_bits);
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias));
}

void every_pattern() {
  for (uint32_t i = 0; i < 65536; i++) {
    uint16_t bits = uint16_t(i);
    double want = value_of(bits, 8, 7);
    float got = __bfloat162float(__ushort_as_bfloat16(bits));
    uint16_t back = __bfloat16_as_ushort(__float2bfloat16(got));
    bool same = want != want ? got != got && back == 0x7fff : double(got) == want && back == bits;
    check(same, "bf16 pattern " + std::to_string(i));

    want = value_of(bits, 5, 10);
    got = __half2float(__ushort_as_half(bits));
    back = __half_as_ushort(__float2half(got));
    same = want != want ? got != got && (back & 0x7c00) == 0x7c00 && (back & 0x3ff) : double(got) == want && back == bits;
    check(same, "half pattern " + std::to_string(i));
  }
}

// Between every two neighbours: just under, at and just over the middle.
void every_rounding() {
  for (uint32_t i = 0; i < 0x7f80; i++) {
    uint32_t low = i << 16, middle = low + 0x8000, even = i % 2 ? i + 1 : i;
    for (uint32_t sign : {0u, 0x8000u}) {
      auto rounded = [&](uint32_t bits) { return __bfloat16_as_ushort(__float2bfloat16(from_bits(bits | sign << 16))); };
      check(rounded(low + 1) == (i | sign) && rounded(middle - 1) == (i | sign), "bf16 rounds down after " + std::to_string(i));
      check(rounded(middle) == (even | sign), "bf16 rounds a tie to even after " + std::to_string(i));
      check(rounded(middle + 1) == ((i + 1) | sign), "bf16 rounds up after " + std::to_string(i));
    }
  }
  check(__bfloat16_as_ushort(__float2bfloat16(from_bits(0x7f7fffff))) == 0x7f80, "the greatest float rounds to bf16 infinity");
  check(__bfloat16_as_ushort(__float2bfloat16(from_bits(0xff800001))) == 0x7fff, "a NaN of any sign becomes 0x7fff");
  check(__half_as_ushort(__float2half(65520.0f)) == 0x7c00, "half overflows to infinity at the tie");
  check(__half_as_ushort(__float2half(65519.0f)) == 0x7bff, "half rounds down under the tie");
}

void intrinsics() {
  check(__float2int_rn(2.5f) == 2 && __float2int_rn(-3.5f) == -4 && __float2int_rz(-3.9f) == -3, "float to int rounds");
  check(__float2int_rn(1e20f) == INT32_MAX && __float2int_rn(-1e20f) == INT32_MIN && __float2int_rn(NAN) == 0, "float to int saturates");
  check(__dp4a(0x80ff017f, 0x80020304, 5) == -128 * -128 + -1 * 2 + 1 * 3 + 127 * 4 + 5, "__dp4a");
  check(__clz(0) == 32 && __clz(1) == 31 && __popc(0xf0f0) == 8 && __ffs(8) == 4, "bit counts");
  check(__float_as_uint(1.0f) == 0x3f800000 && bits_of(__uint_as_float(0x3f800000)) == 0x3f800000, "bit casts");
  check(__saturatef(2.0f) == 1 && __saturatef(-1.0f) == 0 && __saturatef(NAN) == 0, "__saturatef");
}

}  // namespace

void test_conversions() {
  every_pattern();
  every_rounding();
  intrinsics();
}
