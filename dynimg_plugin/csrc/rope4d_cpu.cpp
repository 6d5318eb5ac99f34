// The CPU operator: one pass over q and k, vectorised by the compiler for two instruction sets.
//
// The work is cut into chunks of 64 tokens, whatever the number of threads. Each chunk sums its own part of theta's
// gradient in a fixed order and the parts are added in order, so that 1 and 2 threads give the same bits. The file is
// compiled with -ffp-contract=off: a * c - b * s rounds its products as PyTorch does, so that fp32 results equal its.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "rope4d.h"

// By feature: "arch=haswell" would serve that one model of one maker and leave every other CPU with SSE2.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif
#if defined(__GNUC__) || defined(__clang__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE __forceinline
#endif

namespace dynimg {
namespace {

constexpr int64_t CHUNK = 64;

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

// ---- loads, stores and rounding, without branches, so that the compiler can vectorise them

INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

INLINE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

INLINE float load(float x) { return x; }
INLINE double load(double x) { return x; }
INLINE float load(BF16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

INLINE float load(F16 x) {  // moved into fp32's fields, the exponent is short of 127 - 15 = 112
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
  const uint32_t special = rest >= 0x0f800000 ? 0x7f800000 : 0;  // infinity and NaN
  return float_of(sign | special | bits_of(float_of(rest) * 0x1p112f));
}

// To nearest, ties to even, in the upper 16 bits; a NaN, whose bits could carry into a zero, becomes the common one.
INLINE uint32_t to_nearest(uint32_t bits) {
  const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : rounded;
}

template <typename scalar>
INLINE scalar store(acc_of<scalar> x) {
  return static_cast<scalar>(x);
}

template <>
INLINE BF16 store<BF16>(float x) {
  return {static_cast<uint16_t>(to_nearest(bits_of(x)) >> 16)};
}

template <>
INLINE F16 store<F16>(float x) {
  const uint32_t sign = bits_of(x) & 0x80000000, rest = bits_of(x) ^ sign;
  const uint32_t normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  const uint32_t small = bits_of(float_of(rest) + 0.5f) - 0x3f000000;  // 0.5 has the spacing of fp16's subnormals
  uint32_t half = rest < 0x38800000 ? small : normal;                  // below 2^-14
  half = rest >= 0x47800000 ? 0x7c00 : half;                           // from 65536 on: infinity
  half = rest > 0x7f800000 ? 0x7e00 : half;                            // NaN
  return {static_cast<uint16_t>(sign >> 16 | half)};
}

// As eager PyTorch rounds every intermediate result to the dtype.
template <typename scalar, bool EAGER>
INLINE acc_of<scalar> rounded(acc_of<scalar> x) {
  if constexpr (!EAGER || std::is_same_v<scalar, acc_of<scalar>>) return x;
  else if constexpr (std::is_same_v<scalar, BF16>) return float_of(to_nearest(bits_of(x)) & 0xffff0000);
  else return load(store<scalar>(x));
}

// ---- the angles of one token

// Cephes' polynomials on [-pi/4, pi/4] after reduction in double: within 2 ulp for angles up to 1e6.
INLINE void sincos(double angle, float* sin, float* cos) {
  constexpr double MAGIC = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double turns = (angle * 0.63661977236758134308 + MAGIC) - MAGIC;
  const auto quadrant = static_cast<int32_t>(turns);
  const auto x = static_cast<float>((angle - turns * 1.57079632679489655800) - turns * 6.12323399573676603587e-17);
  const float z = x * x;
  const float s = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  const float c = 1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  const float first = quadrant & 1 ? c : s, second = quadrant & 1 ? s : c;
  *sin = quadrant & 2 ? -first : first;
  *cos = (quadrant + 1) & 2 ? -second : second;
}

INLINE void sincos(double angle, double* sin, double* cos) {
  *sin = std::sin(angle);
  *cos = std::cos(angle);
}

// cos and sin of base + learnable angle into buffers of d; false for a text token, whose angle is the base's.
template <typename acc>
INLINE bool turn(const Angles<acc>& a, int64_t i, int64_t j, acc* cos, acc* sin) {
  const acc* base_cos = a.cos + i * a.batch + j * a.token;
  const acc* base_sin = a.sin + i * a.batch + j * a.token;
  const acc* place = a.coordinates + i * a.coordinate_batch + j * a.coordinate_token;
  const acc *theta_t = a.theta, *theta_h = a.theta + a.pairs, *theta_w = a.theta + 2 * a.pairs;
  const double t = place[0], h = place[1], w = place[2];
  if (t == 0 && h == 0 && w == 0) {
    for (int64_t p = 0; p < a.pairs; ++p) cos[p] = base_cos[p * a.pair], sin[p] = base_sin[p * a.pair];
    return false;
  }
  for (int64_t p = 0; p < a.pairs; ++p) sincos(t * theta_t[p] + h * theta_h[p] + w * theta_w[p], sin + p, cos + p);
  for (int64_t p = 0; p < a.pairs; ++p) {
    const acc c = base_cos[p * a.pair], s = base_sin[p * a.pair], turn_cos = cos[p], turn_sin = sin[p];
    cos[p] = c * turn_cos - s * turn_sin;
    sin[p] = s * turn_cos + c * turn_sin;
  }
  return true;
}

// ---- one row of D numbers; pair p is (p, p + d), or (2 p, 2 p + 1) when interleaved

template <bool INTERLEAVED>
INLINE int64_t first_of(int64_t p) { return INTERLEAVED ? 2 * p : p; }

template <bool INTERLEAVED>
INLINE int64_t second_of(int64_t p, int64_t d) { return INTERLEAVED ? 2 * p + 1 : p + d; }

template <typename scalar, bool INTERLEAVED, bool EAGER>
INLINE void rotate_row(const scalar* x, scalar* y, const acc_of<scalar>* cos, const acc_of<scalar>* sin, int64_t d) {
#pragma GCC ivdep
  for (int64_t p = 0; p < d; ++p) {
    const auto one = first_of<INTERLEAVED>(p), two = second_of<INTERLEAVED>(p, d);
    const auto a = load(x[one]), b = load(x[two]);
    y[one] = store<scalar>(rounded<scalar, EAGER>(a * cos[p]) - rounded<scalar, EAGER>(b * sin[p]));
    y[two] = store<scalar>(rounded<scalar, EAGER>(b * cos[p]) + rounded<scalar, EAGER>(a * sin[p]));
  }
}

template <typename scalar, bool INTERLEAVED>
INLINE void unrotate_row(const scalar* g, scalar* dx, const acc_of<scalar>* cos, const acc_of<scalar>* sin, int64_t d) {
#pragma GCC ivdep
  for (int64_t p = 0; p < d; ++p) {
    const auto one = first_of<INTERLEAVED>(p), two = second_of<INTERLEAVED>(p, d);
    const auto a = load(g[one]), b = load(g[two]);
    dx[one] = store<scalar>(a * cos[p] + b * sin[p]);
    dx[two] = store<scalar>(b * cos[p] - a * sin[p]);
  }
}

// d loss / d angle from the roped outputs y: rotating further moves y by (-y2, y1), whatever the angle was.
template <typename scalar, bool INTERLEAVED>
INLINE void angle_gradient(const scalar* g, const scalar* y, acc_of<scalar>* sum, int64_t d) {
#pragma GCC ivdep
  for (int64_t p = 0; p < d; ++p) {
    const auto one = first_of<INTERLEAVED>(p), two = second_of<INTERLEAVED>(p, d);
    sum[p] += load(g[two]) * load(y[one]) - load(g[one]) * load(y[two]);
  }
}

// ---- one chunk of tokens

template <typename scalar>
struct Forward {
  Heads<scalar> in[2], out[2];
  Angles<acc_of<scalar>> angles;
  int64_t dim;
};

template <typename scalar, bool INTERLEAVED, bool EAGER>
INLINE void forward_chunk(const Forward<scalar>& f, int64_t i, int64_t begin, int64_t end, acc_of<scalar>* buffer) {
  const auto d = f.angles.pairs;
  acc_of<scalar>*cos = buffer, *sin = buffer + d;
  for (int64_t j = begin; j < end; ++j) {
    turn(f.angles, i, j, cos, sin);
    if constexpr (EAGER)
      for (int64_t p = 0; p < 2 * d; ++p) cos[p] = rounded<scalar, EAGER>(cos[p]);  // and sin, behind cos
    for (int which = 0; which < 2; ++which)
      for (int64_t h = 0; h < f.in[which].count; ++h) {
        const scalar* x = f.in[which].row(i, h, j);
        scalar* y = f.out[which].row(i, h, j);
        rotate_row<scalar, INTERLEAVED, EAGER>(x, y, cos, sin, d);
        if (x != y && 2 * d < f.dim) std::memcpy(y + 2 * d, x + 2 * d, sizeof(scalar) * (f.dim - 2 * d));
      }
  }
}

template <typename scalar>
struct Backward {
  Heads<scalar> grad[2], out[2], in[2];  // gradient of the outputs, the outputs, gradient of the inputs
  Angles<acc_of<scalar>> angles;
  int64_t dim;
  bool need_theta;
};

template <typename scalar, bool INTERLEAVED>
INLINE void backward_chunk(const Backward<scalar>& f, int64_t i, int64_t begin, int64_t end, acc_of<scalar>* buffer,
                           double* partial) {
  const auto d = f.angles.pairs;
  acc_of<scalar>*cos = buffer, *sin = buffer + d, *sum = buffer + 2 * d;
  for (int64_t j = begin; j < end; ++j) {
    const bool sum_theta = turn(f.angles, i, j, cos, sin) && f.need_theta;
    for (int64_t p = 0; p < d; ++p) sum[p] = 0;
    for (int which = 0; which < 2; ++which)
      for (int64_t h = 0; h < f.grad[which].count; ++h) {
        const scalar* g = f.grad[which].row(i, h, j);
        scalar* dx = f.in[which].row(i, h, j);
        unrotate_row<scalar, INTERLEAVED>(g, dx, cos, sin, d);
        if (2 * d < f.dim) std::memcpy(dx + 2 * d, g + 2 * d, sizeof(scalar) * (f.dim - 2 * d));
        if (sum_theta) angle_gradient<scalar, INTERLEAVED>(g, f.out[which].row(i, h, j), sum, d);
      }
    const auto* place = f.angles.coordinates + i * f.angles.coordinate_batch + j * f.angles.coordinate_token;
    if (sum_theta)
      for (int axis = 0; axis < 3; ++axis)
        for (int64_t p = 0; p < d; ++p) partial[axis * d + p] += static_cast<double>(place[axis]) * sum[p];
  }
}

// target_clones wants plain functions: one per dtype, pair layout and rounding, with everything inlined.
#define FORWARD(NAME, SCALAR, INTERLEAVED, EAGER)                                                       \
  CLONES void NAME(const Forward<SCALAR>& f, int64_t i, int64_t a, int64_t b, acc_of<SCALAR>* buffer) { \
    forward_chunk<SCALAR, INTERLEAVED, EAGER>(f, i, a, b, buffer);                                      \
  }
#define BACKWARD(NAME, SCALAR, INTERLEAVED)                                                                       \
  CLONES void NAME(const Backward<SCALAR>& f, int64_t i, int64_t a, int64_t b, acc_of<SCALAR>* buffer, double* p) { \
    backward_chunk<SCALAR, INTERLEAVED>(f, i, a, b, buffer, p);                                                   \
  }
#define BOTH(NAME, SCALAR)                              \
  FORWARD(NAME##_half, SCALAR, false, false)            \
  FORWARD(NAME##_half_eager, SCALAR, false, true)       \
  FORWARD(NAME##_interleaved, SCALAR, true, false)      \
  FORWARD(NAME##_interleaved_eager, SCALAR, true, true) \
  BACKWARD(NAME##_half_back, SCALAR, false)             \
  BACKWARD(NAME##_interleaved_back, SCALAR, true)       \
  template <>                                           \
  struct Kernels<SCALAR> {                              \
    static constexpr decltype(&NAME##_half) forward[2][2] = {{NAME##_half, NAME##_half_eager}, \
                                                             {NAME##_interleaved, NAME##_interleaved_eager}}; \
    static constexpr decltype(&NAME##_half_back) backward[2] = {NAME##_half_back, NAME##_interleaved_back}; \
  };

template <typename scalar>
struct Kernels;
BOTH(f64, double)
BOTH(f32, float)
BOTH(f16, F16)
BOTH(bf16, BF16)

// ---- the operators

// Runs body(a storage value), whose type names the kernels.
template <typename Body>
void dispatch(at::ScalarType type, Body body) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "rope4d",
                                  [&] { body(typename StorageOf<scalar_t>::type{}); });
}

template <typename Body>
void for_each_chunk(int64_t batch, int64_t tokens, Body body) {
  const int64_t per_row = (tokens + CHUNK - 1) / CHUNK;
  at::parallel_for(0, batch * per_row, 1, [&](int64_t from, int64_t to) {
    for (int64_t chunk = from; chunk < to; ++chunk) {
      const int64_t begin = chunk % per_row * CHUNK;
      body(chunk, chunk / per_row, begin, std::min(begin + CHUNK, tokens));
    }
  });
}

void rotate(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_out, const at::Tensor& k_out,
            const Tables& tables, bool interleaved, bool match_eager) {
  dispatch(q.scalar_type(), [&](auto storage) {
    using scalar = decltype(storage);
    const Forward<scalar> f{{heads_of<scalar>(q), heads_of<scalar>(k)},
                              {heads_of<scalar>(q_out), heads_of<scalar>(k_out)},
                              tables.angles<acc_of<scalar>>(), q.size(3)};
    const auto kernel = Kernels<scalar>::forward[interleaved][match_eager];
    for_each_chunk(q.size(0), q.size(2), [&](int64_t, int64_t i, int64_t begin, int64_t end) {
      std::vector<acc_of<scalar>> buffer(2 * f.angles.pairs);
      kernel(f, i, begin, end, buffer.data());
    });
  });
}

std::tuple<at::Tensor, at::Tensor> rope4d(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                                          const at::Tensor& sin, const at::Tensor& coordinates,
                                          const at::Tensor& theta, bool interleaved, bool match_eager) {
  const auto tables = check(q, k, cos, sin, coordinates, theta);
  const auto q_in = dense_rows(q), k_in = dense_rows(k);
  auto q_out = output_like(q_in), k_out = output_like(k_in);
  rotate(q_in, k_in, q_out, k_out, tables, interleaved, match_eager);
  return {q_out, k_out};
}

void rope4d_(at::Tensor& q, at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& coordinates,
             const at::Tensor& theta, bool interleaved, bool match_eager) {
  const auto tables = check(q, k, cos, sin, coordinates, theta);
  check_writable(q, k);
  const auto q_dense = dense_rows(q), k_dense = dense_rows(k);
  rotate(q_dense, k_dense, q_dense, k_dense, tables, interleaved, match_eager);
  if (!q_dense.is_same(q)) q.copy_(q_dense);
  if (!k_dense.is_same(k)) k.copy_(k_dense);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> rope4d_backward(
    const at::Tensor& grad_q, const at::Tensor& grad_k, const at::Tensor& q_out, const at::Tensor& k_out,
    const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& coordinates, const at::Tensor& theta,
    bool interleaved, bool need_theta) {
  const auto tables = check(grad_q, grad_k, cos, sin, coordinates, theta);
  check_outputs(grad_q, q_out);
  check_outputs(grad_k, k_out);
  const auto gq = dense_rows(grad_q), gk = dense_rows(grad_k), yq = dense_rows(q_out), yk = dense_rows(k_out);
  auto dq = output_like(gq), dk = output_like(gk);
  const int64_t chunks = gq.size(0) * ((gq.size(2) + CHUNK - 1) / CHUNK);
  const int64_t d = theta.size(1);
  std::vector<double> partial(need_theta ? chunks * 3 * d : 0);
  dispatch(gq.scalar_type(), [&](auto storage) {
    using scalar = decltype(storage);
    const Backward<scalar> f{{heads_of<scalar>(gq), heads_of<scalar>(gk)},
                               {heads_of<scalar>(yq), heads_of<scalar>(yk)},
                               {heads_of<scalar>(dq), heads_of<scalar>(dk)},
                               tables.angles<acc_of<scalar>>(), gq.size(3), need_theta};
    const auto kernel = Kernels<scalar>::backward[interleaved];
    for_each_chunk(gq.size(0), gq.size(2), [&](int64_t chunk, int64_t i, int64_t begin, int64_t end) {
      std::vector<acc_of<scalar>> buffer(3 * d);
      kernel(f, i, begin, end, buffer.data(), need_theta ? partial.data() + chunk * 3 * d : nullptr);
    });
  });
  std::vector<double> total(3 * d);
  for (size_t at = 0; at < partial.size(); ++at) total[at % (3 * d)] += partial[at];
  auto dtheta = at::empty({3, d}, theta.options());
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "rope4d_backward", [&] {
    for (int64_t at = 0; at < 3 * d; ++at) dtheta.data_ptr<scalar_t>()[at] = static_cast<scalar_t>(total[at]);
  });
  return {dq, dk, dtheta};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynimg, CPU, m) {
  m.impl("rope4d", &rope4d);
  m.impl("rope4d_", &rope4d_);
  m.impl("rope4d_backward", &rope4d_backward);
}

}  // namespace dynimg
