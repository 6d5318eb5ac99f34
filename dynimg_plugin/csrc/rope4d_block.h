// What one CUDA block does, in phases with a barrier between them; plain C++, so that a test can run the same code
// on a CPU, thread after thread.
//
// A block takes a few tokens of one batch row. Its threads form groups of `lanes`; a lane holds V pairs of the d pairs
// for good, so that theta's gradient gathers in registers over all (token, head) items of its group:
//
//   thread  0 1 2 3 4 5 6 7 | 8 9 ...            d = 64 pairs, V = 8: 8 lanes, 32 groups of 256 threads
//   pairs   0-7 8-15 ... 63 | 0-7 8-15 ...       items: token 0 head 0, token 0 head 1, ... dealt out to the groups
//
// No atomics: groups are added in order within a block, blocks in order by a sum over their parts.
#pragma once

#include "rope4d.h"

#include <cmath>
#include <initializer_list>
#include <type_traits>

namespace dynimg {

constexpr int THREADS = 256, MAX_PAIRS = 256;  // 48 KB of shared memory hold the tables of 8 tokens up to 256 pairs

template <typename scalar, int V>
struct alignas(sizeof(scalar) * V) Pack {
  scalar x[V];
};

template <typename scalar>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

template <typename scalar, int V>
struct Job {
  using acc = typename AccOf<scalar>::type;

  Heads<scalar> a[2];  // forward: inputs; backward: gradient of the outputs
  Heads<scalar> y[2];  // forward: outputs; backward: the outputs that were saved
  Heads<scalar> b[2];  // backward: gradient of the inputs
  Angles<acc> angles;
  int64_t dim, blocks_per_row;
  int tokens_per_block;
  acc* parts;  // (blocks, 3, d), or null when theta needs no gradient
  bool interleaved, match_eager;

  HOST_DEVICE int pairs() const { return static_cast<int>(angles.pairs); }
  HOST_DEVICE int lanes() const { return pairs() / V; }
  HOST_DEVICE int groups() const { return THREADS / lanes(); }
  // acc words of shared memory: cos and sin of the block's tokens, then theta's sums of every group
  HOST_DEVICE int64_t shared_words() const {
    return int64_t{2} * tokens_per_block * pairs() + (parts ? int64_t{3} * groups() * pairs() : 0);
  }
};

// The tokens [first, first + count) of batch row `row` that a block works on.
struct Span {
  int64_t row, first;
  int count;
};

template <typename scalar, int V>
HOST_DEVICE Span span_of(const Job<scalar, V>& job, int64_t block) {
  const int64_t first = block % job.blocks_per_row * job.tokens_per_block;
  const int64_t left = job.angles.tokens - first;
  return {block / job.blocks_per_row, first, static_cast<int>(left < job.tokens_per_block ? left : job.tokens_per_block)};
}

template <typename acc>
HOST_DEVICE const acc* place_of(const Angles<acc>& a, int64_t i, int64_t j) {
  return a.coordinates + i * a.coordinate_batch + j * a.coordinate_token;
}

template <typename acc>
HOST_DEVICE bool is_text(const acc* place) {
  return place[0] == 0 && place[1] == 0 && place[2] == 0;
}

// The angle in double, reduced to half turns in [-1, 1] before it is rounded: exact at any position.
template <typename acc>
HOST_DEVICE void sincos_of(double angle, acc* sin, acc* cos) {
  const double turns = angle * 0.15915494309189533577;
  const acc half_turns = static_cast<acc>(2 * (turns - rint(turns)));
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(acc) == 4) sincospif(half_turns, sin, cos);
  else sincospi(half_turns, sin, cos);
#else
  *sin = static_cast<acc>(std::sin(half_turns * 3.14159265358979323846));
  *cos = static_cast<acc>(std::cos(half_turns * 3.14159265358979323846));
#endif
}

template <typename scalar, typename acc>
HOST_DEVICE acc rounded(acc x, bool match_eager) {
  return match_eager ? static_cast<acc>(static_cast<scalar>(x)) : x;
}

// Phase 1: cos and sin of every (token, pair) once, for all heads.
template <typename scalar, int V, typename acc = typename AccOf<scalar>::type>
HOST_DEVICE void fill_tables(const Job<scalar, V>& job, const Span& span, int thread, acc* shared) {
  const auto& a = job.angles;
  const int d = job.pairs();
  for (int at = thread; at < span.count * d; at += THREADS) {
    const int token = at / d, p = at % d;
    const int64_t j = span.first + token, offset = span.row * a.batch + j * a.token + p * a.pair;
    const acc* place = place_of(a, span.row, j);
    acc cos = a.cos[offset], sin = a.sin[offset];
    if (!is_text(place)) {
      const double angle = double(place[0]) * a.theta[p] + double(place[1]) * a.theta[d + p] + double(place[2]) * a.theta[2 * d + p];
      acc turn_sin, turn_cos;
      sincos_of(angle, &turn_sin, &turn_cos);
      const acc base_cos = cos, base_sin = sin;
      cos = base_cos * turn_cos - base_sin * turn_sin;
      sin = base_sin * turn_cos + base_cos * turn_sin;
    }
    shared[(2 * token) * d + p] = rounded<scalar>(cos, job.match_eager);
    shared[(2 * token + 1) * d + p] = rounded<scalar>(sin, job.match_eager);
  }
}

// V pairs of a row, in registers: one[v] and two[v] are rotated against each other.
template <typename scalar, int V>
struct Pairs {
  scalar one[V], two[V];

  HOST_DEVICE void read(const scalar* row, int first, int d, bool interleaved) {
    using P = Pack<scalar, V>;
    const P low = *reinterpret_cast<const P*>(row + (interleaved ? 2 * first : first));
    const P high = *reinterpret_cast<const P*>(row + (interleaved ? 2 * first + V : first + d));
    for (int v = 0; v < V; ++v) {
      one[v] = !interleaved ? low.x[v] : 2 * v < V ? low.x[2 * v % V] : high.x[2 * v % V];
      two[v] = !interleaved ? high.x[v] : 2 * v + 1 < V ? low.x[(2 * v + 1) % V] : high.x[(2 * v + 1) % V];
    }
  }

  HOST_DEVICE void write(scalar* row, int first, int d, bool interleaved) const {
    using P = Pack<scalar, V>;
    P low, high;
    for (int v = 0; v < V; ++v) {  // element v of low is number v of the 2 V, element v of high number V + v
      low.x[v] = !interleaved ? one[v] : v % 2 ? two[v / 2] : one[v / 2];
      high.x[v] = !interleaved ? two[v] : (V + v) % 2 ? two[(V + v) / 2] : one[(V + v) / 2];
    }
    *reinterpret_cast<P*>(row + (interleaved ? 2 * first : first)) = low;
    *reinterpret_cast<P*>(row + (interleaved ? 2 * first + V : first + d)) = high;
  }
};

// Heads of q and k are numbered through: item -> token, which of the two, head.
struct Item {
  int token, which;
  int head;
};

HOST_DEVICE Item item_of(int item, int heads_q, int heads) {
  const int token = item / heads, head = item - token * heads;
  return {token, head >= heads_q, head >= heads_q ? head - heads_q : head};
}

// The numbers beyond the rotary dimension pass through.
template <typename scalar, int V>
HOST_DEVICE void copy_rest(const Job<scalar, V>& job, const scalar* from, scalar* to, int lane) {
  if (from != to)
    for (int64_t e = 2 * job.angles.pairs + lane; e < job.dim; e += job.lanes()) to[e] = from[e];
}

// Phase 2, forward.
template <typename scalar, int V, typename acc = typename AccOf<scalar>::type>
HOST_DEVICE void rotate_items(const Job<scalar, V>& job, const Span& span, int thread, const acc* shared) {
  const int d = job.pairs(), lane = thread % job.lanes(), group = thread / job.lanes(), first = lane * V;
  if (group >= job.groups()) return;
  const int heads_q = static_cast<int>(job.a[0].count), heads = heads_q + static_cast<int>(job.a[1].count);
  for (int at = group; at < span.count * heads; at += job.groups()) {
    const Item item = item_of(at, heads_q, heads);
    const scalar* x = job.a[item.which].row(span.row, item.head, span.first + item.token);
    scalar* y = job.y[item.which].row(span.row, item.head, span.first + item.token);
    const acc *cos = shared + 2 * item.token * d + first, *sin = cos + d;
    Pairs<scalar, V> in, out;
    in.read(x, first, d, job.interleaved);
    for (int v = 0; v < V; ++v) {
      const acc one = static_cast<acc>(in.one[v]), two = static_cast<acc>(in.two[v]);
      const bool eager = job.match_eager;
      out.one[v] = static_cast<scalar>(rounded<scalar>(one * cos[v], eager) - rounded<scalar>(two * sin[v], eager));
      out.two[v] = static_cast<scalar>(rounded<scalar>(two * cos[v], eager) + rounded<scalar>(one * sin[v], eager));
    }
    out.write(y, first, d, job.interleaved);
    copy_rest(job, x, y, lane);
  }
}

// Phase 2, backward: rotate the gradient back; d loss / d angle from the saved outputs, as rotating on moves y by
// (-y2, y1). Text tokens have no learnable angle: their outputs are never read.
template <typename scalar, int V, typename acc = typename AccOf<scalar>::type>
HOST_DEVICE void unrotate_items(const Job<scalar, V>& job, const Span& span, int thread, acc* shared) {
  const int d = job.pairs(), lane = thread % job.lanes(), group = thread / job.lanes(), first = lane * V;
  if (group >= job.groups()) return;
  const int heads_q = static_cast<int>(job.a[0].count), heads = heads_q + static_cast<int>(job.a[1].count);
  acc sums[3][V] = {};
  for (int at = group; at < span.count * heads; at += job.groups()) {
    const Item item = item_of(at, heads_q, heads);
    const int64_t j = span.first + item.token;
    const scalar* g = job.a[item.which].row(span.row, item.head, j);
    scalar* dx = job.b[item.which].row(span.row, item.head, j);
    const acc *cos = shared + 2 * item.token * d + first, *sin = cos + d;
    Pairs<scalar, V> grad, out;
    grad.read(g, first, d, job.interleaved);
    for (int v = 0; v < V; ++v) {
      const acc one = static_cast<acc>(grad.one[v]), two = static_cast<acc>(grad.two[v]);
      out.one[v] = static_cast<scalar>(one * cos[v] + two * sin[v]);
      out.two[v] = static_cast<scalar>(two * cos[v] - one * sin[v]);
    }
    out.write(dx, first, d, job.interleaved);
    copy_rest(job, g, dx, lane);
    const acc* place = place_of(job.angles, span.row, j);
    if (!job.parts || is_text(place)) continue;
    Pairs<scalar, V> y;
    y.read(job.y[item.which].row(span.row, item.head, j), first, d, job.interleaved);
    for (int v = 0; v < V; ++v) {
      const acc turn = static_cast<acc>(grad.two[v]) * static_cast<acc>(y.one[v]) -
                       static_cast<acc>(grad.one[v]) * static_cast<acc>(y.two[v]);
      for (int axis = 0; axis < 3; ++axis) sums[axis][v] += place[axis] * turn;
    }
  }
  if (!job.parts) return;
  acc* of_group = shared + int64_t{2} * job.tokens_per_block * d + int64_t{3} * group * d;
  for (int axis = 0; axis < 3; ++axis)
    for (int v = 0; v < V; ++v) of_group[axis * d + first + v] = sums[axis][v];
}

// Phase 3, backward: add the groups of a block in order.
template <typename scalar, int V, typename acc = typename AccOf<scalar>::type>
HOST_DEVICE void add_groups(const Job<scalar, V>& job, int64_t block, int thread, const acc* shared) {
  const int words = 3 * job.pairs();
  const acc* sums = shared + int64_t{2} * job.tokens_per_block * job.pairs();
  for (int at = thread; at < words; at += THREADS) {
    acc total = 0;
    for (int group = 0; group < job.groups(); ++group) total += sums[group * words + at];
    job.parts[block * words + at] = total;
  }
}

// How the work is cut; a function of the shape alone, so that sums are taken in the same order every time.
template <typename scalar, int V>
int64_t cut(Job<scalar, V>& job, int64_t batch) {
  const int64_t tokens = job.angles.tokens;
  job.tokens_per_block = batch * tokens < 8192 ? 4 : 8;
  job.blocks_per_row = (tokens + job.tokens_per_block - 1) / job.tokens_per_block;
  return batch * job.blocks_per_row;
}

// V numbers of 16 bytes at once where every row starts at a multiple of them, else one by one.
template <typename scalar, int V>
bool fits(const Heads<scalar>& x, int64_t d) {
  return reinterpret_cast<uintptr_t>(x.data) % (sizeof(scalar) * V) == 0 && d % V == 0 && x.batch % V == 0 && x.head % V == 0 && x.token % V == 0;
}

// Runs body(std::integral_constant<int, V>) with V numbers of 16 bytes, or with 1 where a row is not aligned to them.
template <typename scalar, typename Body>
void with_width(std::initializer_list<at::Tensor> tensors, int64_t d, Body body) {
  constexpr int WIDE = 16 / sizeof(scalar);
  bool wide = true;
  for (const auto& x : tensors) wide = wide && fits<scalar, WIDE>(heads_of<scalar>(x), d);
  if (wide) body(std::integral_constant<int, WIDE>());
  else body(std::integral_constant<int, 1>());
}

template <typename scalar, int V>
Job<scalar, V> forward_job(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_out, const at::Tensor& k_out,
                           const Tables& tables, bool interleaved, bool match_eager) {
  Job<scalar, V> job{};
  job.a[0] = heads_of<scalar>(q), job.a[1] = heads_of<scalar>(k);
  job.y[0] = heads_of<scalar>(q_out), job.y[1] = heads_of<scalar>(k_out);
  job.angles = tables.angles<typename AccOf<scalar>::type>();
  job.dim = q.size(3), job.interleaved = interleaved, job.match_eager = match_eager;
  return job;
}

// Without parts: theta_parts() adds them when theta needs a gradient.
template <typename scalar, int V>
Job<scalar, V> backward_job(const at::Tensor& gq, const at::Tensor& gk, const at::Tensor& yq, const at::Tensor& yk,
                            const at::Tensor& dq, const at::Tensor& dk, const Tables& tables, bool interleaved) {
  Job<scalar, V> job{};
  job.a[0] = heads_of<scalar>(gq), job.a[1] = heads_of<scalar>(gk);
  job.y[0] = heads_of<scalar>(yq), job.y[1] = heads_of<scalar>(yk);
  job.b[0] = heads_of<scalar>(dq), job.b[1] = heads_of<scalar>(dk);
  job.angles = tables.angles<typename AccOf<scalar>::type>();
  job.dim = gq.size(3), job.interleaved = interleaved;
  return job;
}

// (blocks, 3, d): what every block adds to theta's gradient; their sum is the gradient.
template <typename scalar, int V>
at::Tensor theta_parts(Job<scalar, V>& job, int64_t blocks, const at::Tensor& theta) {
  at::Tensor parts = at::empty({blocks, 3, theta.size(1)}, theta.options());
  job.parts = parts.data_ptr<typename AccOf<scalar>::type>();
  return parts;
}

}  // namespace dynimg
