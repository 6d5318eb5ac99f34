// Runs the code of the CUDA blocks on a CPU: every thread of a block in turn, phase by phase, as the barriers would.
#include "rope4d_block.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

namespace dynimg {
namespace {

template <typename scalar, int V, typename Phase>
void each_block(const Job<scalar, V>& job, int64_t blocks, Phase phases) {
  using acc = typename AccOf<scalar>::type;
  for (int64_t block = 0; block < blocks; ++block) {
    std::vector<acc> shared(job.shared_words(), std::numeric_limits<acc>::quiet_NaN());  // a read before a write shows
    phases(block, span_of(job, block), shared.data());
  }
}

template <typename Body>
void each_thread(Body body) {
  for (int thread = 0; thread < THREADS; ++thread) body(thread);
}

// As the operator chooses, or one number at a time.
template <typename scalar, typename Body>
void at_width(bool narrow, std::initializer_list<at::Tensor> tensors, int64_t d, Body body) {
  if (narrow) body(std::integral_constant<int, 1>());
  else with_width<scalar>(tensors, d, body);
}

#define DISPATCH(TYPE, ...) AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, "emulate", __VA_ARGS__)

std::tuple<at::Tensor, at::Tensor, bool> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                                                 const at::Tensor& sin, const at::Tensor& coordinates,
                                                 const at::Tensor& theta, bool interleaved, bool match_eager,
                                                 bool narrow) {
  const auto tables = check(q, k, cos, sin, coordinates, theta);
  auto q_out = at::empty_like(q), k_out = at::empty_like(k);
  bool wide = false;
  DISPATCH(q.scalar_type(), [&] {
    at_width<scalar_t>(narrow, {q, k, q_out, k_out}, theta.size(1), [&](auto width) {
      wide = width > 1;
      auto job = forward_job<scalar_t, width>(q, k, q_out, k_out, tables, interleaved, match_eager);
      each_block(job, cut(job, q.size(0)), [&](int64_t, const Span& span, auto* shared) {
        each_thread([&](int thread) { fill_tables(job, span, thread, shared); });
        each_thread([&](int thread) { rotate_items(job, span, thread, shared); });
      });
    });
  });
  return {q_out, k_out, wide};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& gq, const at::Tensor& gk, const at::Tensor& yq,
                                                        const at::Tensor& yk, const at::Tensor& cos,
                                                        const at::Tensor& sin, const at::Tensor& coordinates,
                                                        const at::Tensor& theta, bool interleaved, bool need_theta,
                                                        bool narrow) {
  const auto tables = check(gq, gk, cos, sin, coordinates, theta);
  auto dq = at::empty_like(gq), dk = at::empty_like(gk), parts = at::empty({0, 3, theta.size(1)}, theta.options());
  DISPATCH(gq.scalar_type(), [&] {
    at_width<scalar_t>(narrow, {gq, gk, yq, yk, dq, dk}, theta.size(1), [&](auto width) {
      auto job = backward_job<scalar_t, width>(gq, gk, yq, yk, dq, dk, tables, interleaved);
      const auto blocks = cut(job, gq.size(0));
      if (need_theta) parts = theta_parts(job, blocks, theta);
      each_block(job, blocks, [&](int64_t block, const Span& span, auto* shared) {
        each_thread([&](int thread) { fill_tables(job, span, thread, shared); });
        each_thread([&](int thread) { unrotate_items(job, span, thread, shared); });
        if (job.parts) each_thread([&](int thread) { add_groups(job, block, thread, shared); });
      });
    });
  });
  return {dq, dk, at::sum(parts, 0)};
}

}  // namespace

TORCH_LIBRARY(dynimg_emulated, m) {
  m.def(
      "forward(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor coordinates, Tensor theta, bool interleaved, bool "
      "match_eager, bool narrow) -> (Tensor, Tensor, bool)",
      &forward);
  m.def(
      "backward(Tensor gq, Tensor gk, Tensor yq, Tensor yk, Tensor cos, Tensor sin, Tensor coordinates, Tensor theta, "
      "bool interleaved, bool need_theta, bool narrow) -> (Tensor, Tensor, Tensor)",
      &backward);
}

}  // namespace dynimg
