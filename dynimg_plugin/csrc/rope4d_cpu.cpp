// The CPU operator: one pass over q and k, vectorised by the compiler for two instruction sets.
//
// The work is cut into chunks of 64 tokens, whatever the number of threads. Each chunk sums its own part of theta's
// gradient in a fixed order and the parts are added in order, so that 1 and 2 threads give the same bits. The file is
// compiled with -ffp-contract=off: a * c - b * s rounds its products as PyTorch does, so that fp32 results equal its.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "rope4d.h"
#include "rope4d_numbers.h"

// By feature: "arch=haswell" would serve that one model of one maker and leave every other CPU with SSE2.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif

namespace dynimg {
namespace {

constexpr int64_t CHUNK = 64;

// ---- one row of D numbers; pair p is (p, p + d), or (2 p, 2 p + 1) when interleaved

// Two neighbours of 16 bits are worked on as one word. Where they belong to two pairs, the tables are laid out as the
// words come apart, slots of d = 6: cos 0 2 4 | 1 3 5.
template <typename scalar, bool INTERLEAVED>
constexpr bool SPLIT = IS_HALF<scalar> && !INTERLEAVED;

INLINE int64_t slot_of(int64_t p, int64_t d, bool split) {
  return !split || p == d / 2 * 2 ? p : p % 2 * (d / 2) + p / 2;
}

// y = turn(the pair of x, the pair of z, its slot) for all pairs; y may be x.
template <typename scalar, bool INTERLEAVED, typename Turn>
INLINE void each_pair(const scalar* x, const scalar* z, scalar* y, int64_t d, Turn turn) {
  using acc = acc_of<scalar>;
  if constexpr (SPLIT<scalar, INTERLEAVED>) {
    const int64_t words = d / 2;
#pragma GCC ivdep
    for (int64_t w = 0; w < words; ++w) {
      const auto xa = load_two(x + 2 * w), xb = load_two(x + d + 2 * w);
      const auto za = load_two(z + 2 * w), zb = load_two(z + d + 2 * w);
      const Two<acc> even = turn({xa.one, xb.one}, {za.one, zb.one}, w);
      const Two<acc> odd = turn({xa.two, xb.two}, {za.two, zb.two}, words + w);
      store_two(y + 2 * w, {even.one, odd.one});
      store_two(y + d + 2 * w, {even.two, odd.two});
    }
    if (d % 2 == 0) return;
    const int64_t last = d - 1;
    const Two<acc> turned = turn({load(x[last]), load(x[last + d])}, {load(z[last]), load(z[last + d])}, last);
    y[last] = store<scalar>(turned.one), y[last + d] = store<scalar>(turned.two);
  } else if constexpr (IS_HALF<scalar>) {
#pragma GCC ivdep
    for (int64_t p = 0; p < d; ++p) store_two(y + 2 * p, turn(load_two(x + 2 * p), load_two(z + 2 * p), p));
  } else {
#pragma GCC ivdep
    for (int64_t p = 0; p < d; ++p) {
      const auto one = INTERLEAVED ? 2 * p : p, two = INTERLEAVED ? 2 * p + 1 : p + d;
      const Two<acc> turned = turn({x[one], x[two]}, {z[one], z[two]}, p);
      y[one] = turned.one, y[two] = turned.two;
    }
  }
}

template <typename scalar, bool EAGER>
struct Rotate {
  using acc = acc_of<scalar>;
  const acc *cos, *sin;

  INLINE Two<acc> operator()(Two<acc> x, Two<acc>, int64_t at) const {
    return {rounded<scalar, EAGER>(x.one * cos[at]) - rounded<scalar, EAGER>(x.two * sin[at]),
            rounded<scalar, EAGER>(x.two * cos[at]) + rounded<scalar, EAGER>(x.one * sin[at])};
  }
};

// Rotates a gradient back. With THETA it also sums d loss / d angle from the roped outputs y: rotating further moves y
// by (-y2, y1), whatever the angle was.
template <typename acc, bool THETA>
struct Unrotate {
  const acc *cos, *sin;
  acc* sum;

  INLINE Two<acc> operator()(Two<acc> g, Two<acc> y, int64_t at) const {
    if constexpr (THETA) sum[at] += g.two * y.one - g.one * y.two;
    return {g.one * cos[at] + g.two * sin[at], g.two * cos[at] - g.one * sin[at]};
  }
};

// ---- the angles of one token

// Room for one token's tables: in the order of slots, and as they are computed.
template <typename acc>
class Scratch {
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<Line> lines;

  template <typename number>
  number* part(int64_t index, int64_t d) {  // no number is wider than 8 bytes
    return reinterpret_cast<number*>(lines.data() + index * ((d + 7) / 8));
  }

 public:
  acc *cos, *sin, *sum, *plain_cos, *plain_sin;
  double* angles;
  int32_t* quadrants;

  explicit Scratch(int64_t d)
      : lines(7 * ((d + 7) / 8)), cos(part<acc>(0, d)), sin(part<acc>(1, d)), sum(part<acc>(2, d)),
        plain_cos(part<acc>(3, d)), plain_sin(part<acc>(4, d)), angles(part<double>(5, d)),
        quadrants(part<int32_t>(6, d)) {}
  Scratch(const Scratch&) = delete;
};

// A table in the order of slots, as the rows want its numbers.
template <typename scalar, bool INTERLEAVED, bool EAGER>
INLINE void arrange(const acc_of<scalar>* from, acc_of<scalar>* to, int64_t d) {
  const int64_t words = SPLIT<scalar, INTERLEAVED> ? d / 2 : 0;
  for (int64_t w = 0; w < words; ++w) {
    to[w] = rounded<scalar, EAGER>(plain_nan(from[2 * w]));
    to[words + w] = rounded<scalar, EAGER>(plain_nan(from[2 * w + 1]));
  }
  for (int64_t p = 2 * words; p < d; ++p) to[p] = rounded<scalar, EAGER>(plain_nan(from[p]));
}

// cos and sin of base + learnable angle into the scratch; false for a text token, whose angle is the base's.
template <typename scalar, bool INTERLEAVED, bool EAGER, typename acc = acc_of<scalar>>
INLINE bool turn(const Angles<acc>& a, int64_t i, int64_t j, const Scratch<acc>& to) {
  const auto d = a.pairs;
  const acc* base_cos = a.cos + i * a.batch + j * a.token;
  const acc* base_sin = a.sin + i * a.batch + j * a.token;
  const acc* place = a.coordinates + i * a.coordinate_batch + j * a.coordinate_token;
  const acc *theta_t = a.theta, *theta_h = a.theta + d, *theta_w = a.theta + 2 * d;
  acc *cos = to.plain_cos, *sin = to.plain_sin;
  const double t = place[0], h = place[1], w = place[2];
  const bool visual = t != 0 || h != 0 || w != 0;
  if (visual) {
    for (int64_t p = 0; p < d; ++p) to.angles[p] = t * theta_t[p] + h * theta_h[p] + w * theta_w[p];
    sincos(to.angles, d, sin, cos, to.quadrants);
  }
  for (int64_t p = 0; p < d; ++p) {
    const acc c = base_cos[p * a.pair], s = base_sin[p * a.pair], turn_cos = cos[p], turn_sin = sin[p];
    cos[p] = visual ? c * turn_cos - s * turn_sin : c;
    sin[p] = visual ? s * turn_cos + c * turn_sin : s;
  }
  arrange<scalar, INTERLEAVED, EAGER>(cos, to.cos, d);
  arrange<scalar, INTERLEAVED, EAGER>(sin, to.sin, d);
  return visual;
}

// ---- one chunk of tokens

template <typename scalar>
struct Forward {
  Heads<scalar> in[2], out[2];
  Angles<acc_of<scalar>> angles;
  int64_t dim;
};

template <typename scalar, bool INTERLEAVED, bool EAGER>
INLINE void forward_chunk(const Forward<scalar>& f, int64_t i, int64_t begin, int64_t end,
                          const Scratch<acc_of<scalar>>& scratch) {
  const auto d = f.angles.pairs;
  const Rotate<scalar, EAGER> rotate{scratch.cos, scratch.sin};
  for (int64_t j = begin; j < end; ++j) {
    turn<scalar, INTERLEAVED, EAGER>(f.angles, i, j, scratch);
    for (int which = 0; which < 2; ++which)
      for (int64_t h = 0; h < f.in[which].count; ++h) {
        const scalar* x = f.in[which].row(i, h, j);
        scalar* y = f.out[which].row(i, h, j);
        each_pair<scalar, INTERLEAVED>(x, x, y, d, rotate);
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

template <typename scalar, bool INTERLEAVED, bool THETA>
INLINE void unrotate_token(const Backward<scalar>& f, int64_t i, int64_t j, const Scratch<acc_of<scalar>>& scratch) {
  const auto d = f.angles.pairs;
  const Unrotate<acc_of<scalar>, THETA> unrotate{scratch.cos, scratch.sin, scratch.sum};
  for (int which = 0; which < 2; ++which)
    for (int64_t h = 0; h < f.grad[which].count; ++h) {
      const scalar* g = f.grad[which].row(i, h, j);
      scalar* dx = f.in[which].row(i, h, j);
      each_pair<scalar, INTERLEAVED>(g, THETA ? f.out[which].row(i, h, j) : g, dx, d, unrotate);
      if (2 * d < f.dim) std::memcpy(dx + 2 * d, g + 2 * d, sizeof(scalar) * (f.dim - 2 * d));
    }
}

// `partial`: theta's gradient of this chunk, (3, d) in the order of slots.
template <typename scalar, bool INTERLEAVED>
INLINE void backward_chunk(const Backward<scalar>& f, int64_t i, int64_t begin, int64_t end,
                           const Scratch<acc_of<scalar>>& scratch, double* partial) {
  const auto d = f.angles.pairs;
  for (int64_t j = begin; j < end; ++j) {
    const bool visual = turn<scalar, INTERLEAVED, false>(f.angles, i, j, scratch);
    if (!visual || !f.need_theta) {
      unrotate_token<scalar, INTERLEAVED, false>(f, i, j, scratch);
      continue;
    }
    for (int64_t p = 0; p < d; ++p) scratch.sum[p] = 0;
    unrotate_token<scalar, INTERLEAVED, true>(f, i, j, scratch);
    const auto* place = f.angles.coordinates + i * f.angles.coordinate_batch + j * f.angles.coordinate_token;
    for (int axis = 0; axis < 3; ++axis)
      for (int64_t p = 0; p < d; ++p) partial[axis * d + p] += static_cast<double>(place[axis]) * scratch.sum[p];
  }
}

// target_clones wants plain functions: one per dtype, pair layout and rounding, with everything inlined.
#define FORWARD(NAME, SCALAR, INTERLEAVED, EAGER)                                       \
  CLONES void NAME(const Forward<SCALAR>& f, int64_t i, int64_t begin, int64_t end,     \
                   const Scratch<acc_of<SCALAR>>& scratch) {                            \
    forward_chunk<SCALAR, INTERLEAVED, EAGER>(f, i, begin, end, scratch);               \
  }
#define BACKWARD(NAME, SCALAR, INTERLEAVED)                                             \
  CLONES void NAME(const Backward<SCALAR>& f, int64_t i, int64_t begin, int64_t end,    \
                   const Scratch<acc_of<SCALAR>>& scratch, double* partial) {           \
    backward_chunk<SCALAR, INTERLEAVED>(f, i, begin, end, scratch, partial);            \
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

int64_t chunks_of(int64_t tokens) { return (tokens + CHUNK - 1) / CHUNK; }

template <typename acc, typename Body>
void for_each_chunk(int64_t batch, const Angles<acc>& angles, Body body) {
  const int64_t tokens = angles.tokens, per_row = chunks_of(tokens);
  at::parallel_for(0, batch * per_row, 1, [&](int64_t from, int64_t to) {
    const Scratch<acc> scratch(angles.pairs);
    for (int64_t chunk = from; chunk < to; ++chunk) {
      const int64_t begin = chunk % per_row * CHUNK;
      body(chunk, chunk / per_row, begin, std::min(begin + CHUNK, tokens), scratch);
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
    for_each_chunk(q.size(0), f.angles, [&](int64_t, int64_t i, int64_t begin, int64_t end, const auto& scratch) {
      kernel(f, i, begin, end, scratch);
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

// The chunks' parts of theta's gradient, added in order.
at::Tensor sum_of(const std::vector<double>& partial, const at::Tensor& theta, bool split) {
  const int64_t d = theta.size(1);
  std::vector<double> total(3 * d);
  for (size_t first = 0; first < partial.size(); first += 3 * d)
    for (int64_t at = 0; at < 3 * d; ++at) total[at] += partial[first + at];
  auto sum = at::empty({3, d}, theta.options());
  AT_DISPATCH_FLOATING_TYPES(theta.scalar_type(), "rope4d_backward", [&] {
    for (int64_t at = 0; at < 3 * d; ++at)
      sum.data_ptr<scalar_t>()[at] = static_cast<scalar_t>(total[at / d * d + slot_of(at % d, d, split)]);
  });
  return sum;
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
  const int64_t d = theta.size(1);
  std::vector<double> partial(need_theta ? gq.size(0) * chunks_of(gq.size(2)) * 3 * d : 0);
  dispatch(gq.scalar_type(), [&](auto storage) {
    using scalar = decltype(storage);
    const Backward<scalar> f{{heads_of<scalar>(gq), heads_of<scalar>(gk)},
                               {heads_of<scalar>(yq), heads_of<scalar>(yk)},
                               {heads_of<scalar>(dq), heads_of<scalar>(dk)},
                               tables.angles<acc_of<scalar>>(), gq.size(3), need_theta};
    const auto kernel = Kernels<scalar>::backward[interleaved];
    for_each_chunk(gq.size(0), f.angles, [&](int64_t at, int64_t i, int64_t begin, int64_t end, const auto& scratch) {
      kernel(f, i, begin, end, scratch, need_theta ? partial.data() + at * 3 * d : nullptr);
    });
  });
  return {dq, dk, sum_of(partial, theta, !interleaved && gq.element_size() == 2)};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynimg, CPU, m) {
  m.impl("rope4d", &rope4d);
  m.impl("rope4d_", &rope4d_);
  m.impl("rope4d_backward", &rope4d_backward);
}

}  // namespace dynimg
