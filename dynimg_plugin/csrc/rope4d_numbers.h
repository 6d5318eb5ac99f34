// Numbers of the CPU operator: bf16 and fp16 two by two in words of 32 bits, rounding, sine and cosine. Without
// branches and without mixing widths, so that the compiler can vectorise the loops around them.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__) || defined(__clang__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE __forceinline
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the CPU operator reads two 16-bit numbers as one little-endian word"
#endif

namespace dynimg {
namespace {

// Bits of a half-precision number: c10's classes have constructors that the compiler will not inline into every clone.
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

template <typename scalar>
struct StorageOf {
  using type = scalar;
};
template <>
struct StorageOf<c10::Half> {
  using type = F16;
};
template <>
struct StorageOf<c10::BFloat16> {
  using type = BF16;
};

template <typename scalar>
using acc_of = std::conditional_t<std::is_same_v<scalar, double>, double, float>;

template <typename scalar>
constexpr bool IS_HALF = sizeof(scalar) == 2;

template <typename number>
struct Two {
  number one, two;
};

template <typename To, typename From>
INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- loads and stores

INLINE float load(float x) { return x; }
INLINE double load(double x) { return x; }
INLINE float load(BF16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

INLINE float from_half(uint32_t half) {  // moved into fp32's fields, the exponent is short of 127 - 15 = 112
  const auto rest = static_cast<int32_t>((half & 0x7fff) << 13);
  const uint32_t special = rest >= 0x0f800000 ? 0x7f800000 : 0;  // infinity and NaN
  return bits_as<float>((half & 0x8000) << 16 | special | bits_as<uint32_t>(bits_as<float>(rest) * 0x1p112f));
}

INLINE float load(F16 x) { return from_half(x.bits); }

INLINE uint32_t to_half(float x) {
  const auto rest = static_cast<int32_t>(bits_as<uint32_t>(x) & 0x7fffffff);
  const int32_t normal = (rest - (112 << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  const int32_t small = bits_as<int32_t>(bits_as<float>(rest) + 0.5f) - 0x3f000000;  // 0.5 has fp16's subnormal spacing
  int32_t half = rest < 0x38800000 ? small : normal;                                 // below 2^-14
  half = rest >= 0x47800000 ? 0x7c00 : half;                                         // from 65536 on: infinity
  half = rest > 0x7f800000 ? 0x7e00 : half;                                          // NaN
  return (bits_as<uint32_t>(x) >> 16 & 0x8000) | static_cast<uint32_t>(half);
}

// To bf16's precision, in the upper 16 bits: to nearest, ties to even. A NaN must have zeros in the lower 16, or it
// could carry into zero: those of bf16 have them, and those that arithmetic makes; tables go through plain_nan().
INLINE uint32_t to_nearest(float x) {
  const auto bits = bits_as<uint32_t>(x);
  return bits + 0x7fff + ((bits >> 16) & 1);
}

template <typename acc>
INLINE acc plain_nan(acc x) {
  return x == x ? x : static_cast<acc>(NAN);
}

template <typename scalar>
INLINE scalar store(acc_of<scalar> x) {
  return static_cast<scalar>(x);
}

template <>
INLINE BF16 store<BF16>(float x) {
  return {static_cast<uint16_t>(to_nearest(x) >> 16)};
}

template <>
INLINE F16 store<F16>(float x) {
  return {static_cast<uint16_t>(to_half(x))};
}

// Two neighbours of 16 bits as one word: every step of the loop then works on lanes of 32 bits, nothing is shuffled.
template <typename scalar>
INLINE Two<float> load_two(const scalar* x) {
  uint32_t word;
  std::memcpy(&word, x, 4);
  if constexpr (std::is_same_v<scalar, BF16>) return {bits_as<float>(word << 16), bits_as<float>(word & 0xffff0000)};
  else return {from_half(word & 0xffff), from_half(word >> 16)};
}

template <typename scalar>
INLINE void store_two(scalar* y, Two<float> x) {
  uint32_t word;
  if constexpr (std::is_same_v<scalar, BF16>) word = to_nearest(x.one) >> 16 | (to_nearest(x.two) & 0xffff0000);
  else word = to_half(x.one) | to_half(x.two) << 16;
  std::memcpy(y, &word, 4);
}

// As eager PyTorch rounds every intermediate result to the dtype.
template <typename scalar, bool EAGER>
INLINE acc_of<scalar> rounded(acc_of<scalar> x) {
  if constexpr (!EAGER || std::is_same_v<scalar, acc_of<scalar>>) return x;
  else if constexpr (std::is_same_v<scalar, BF16>) return bits_as<float>(to_nearest(x) & 0xffff0000);
  else return from_half(to_half(x));
}

// ---- sine and cosine

// An angle less its quarter turns, in [-pi/4, pi/4], and their number. In double: within 2 ulp of fp32 up to 1e6.
INLINE void reduce(double angle, float* rest, int32_t* quadrant) {
  constexpr double MAGIC = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double turns = (angle * 0.63661977236758134308 + MAGIC) - MAGIC;
  *rest = static_cast<float>((angle - turns * 1.57079632679489655800) - turns * 6.12323399573676603587e-17);
  *quadrant = static_cast<int32_t>(turns);
}

// Cephes' polynomials.
INLINE Two<float> sin_and_cos(float x, int32_t quadrant) {
  const float z = x * x;
  const float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  const float c = 1.0f - 0.5f * z +
                  z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  const float sin = quadrant & 1 ? c : s, cos = quadrant & 1 ? s : c;
  const auto turned = static_cast<uint32_t>(quadrant);  // bit 1 into the sign: sine is negative in 2, 3, cosine in 1, 2
  return {bits_as<float>(bits_as<uint32_t>(sin) ^ ((turned & 2) << 30)),
          bits_as<float>(bits_as<uint32_t>(cos) ^ (((turned + 1) & 2) << 30))};
}

// Of `count` angles; `quadrants` is room for as many.
INLINE void sincos(const double* angles, int64_t count, float* sin, float* cos, int32_t* quadrants) {
  for (int64_t p = 0; p < count; ++p) reduce(angles[p], sin + p, quadrants + p);
  for (int64_t p = 0; p < count; ++p) {
    const auto both = sin_and_cos(sin[p], quadrants[p]);
    sin[p] = both.one, cos[p] = both.two;
  }
}

INLINE void sincos(const double* angles, int64_t count, double* sin, double* cos, int32_t*) {
  for (int64_t p = 0; p < count; ++p) sin[p] = std::sin(angles[p]), cos[p] = std::cos(angles[p]);
}

}  // namespace
}  // namespace dynimg
