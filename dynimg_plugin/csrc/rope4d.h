// What the CPU and the CUDA operator share: the arguments, checked once, with their strides.
//
//   q, k         (b, heads, s, D)   any strides over b, heads, s; the last dimension is dense
//   cos, sin     (b, s, d)          of the base, 2 d <= D; float, or double when q is double
//   coordinates  (b, s, 3)          t, h, w per token; all zero for text
//   theta        (3, d)
//   angle        base + t * theta[0] + h * theta[1] + w * theta[2]
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include <cstdint>

#ifndef HOST_DEVICE
#define HOST_DEVICE inline
#endif

namespace dynimg {

// A (b, heads, s, D) tensor; element (i, h, j, e) lies at data + i * batch + h * head + j * token + e.
template <typename scalar>
struct Heads {
  scalar* data;
  int64_t count, batch, head, token;

  HOST_DEVICE scalar* row(int64_t i, int64_t h, int64_t j) const { return data + i * batch + h * head + j * token; }
};

template <typename scalar>
Heads<scalar> heads_of(const at::Tensor& x) {
  return {x.numel() ? static_cast<scalar*>(x.data_ptr()) : nullptr, x.size(1), x.stride(0), x.stride(1), x.stride(2)};
}

// The angles: tables of the base and what the learnable part needs. Strides of 0 broadcast over the batch.
template <typename acc>
struct Angles {
  const acc *cos, *sin, *coordinates, *theta;
  int64_t batch, token, pair;  // of cos and sin
  int64_t coordinate_batch, coordinate_token;
  int64_t tokens, pairs;  // s and d
};

struct Tables {
  at::Tensor cos, sin, coordinates, theta;

  template <typename acc>
  Angles<acc> angles() const {
    return {cos.const_data_ptr<acc>(), sin.const_data_ptr<acc>(), coordinates.const_data_ptr<acc>(),
            theta.const_data_ptr<acc>(), cos.stride(0), cos.stride(1), cos.stride(2), coordinates.stride(0),
            coordinates.stride(1), cos.size(1), cos.size(2)};
  }
};

inline at::Tensor dense_rows(const at::Tensor& x) { return x.stride(-1) == 1 || x.size(-1) < 2 ? x : x.contiguous(); }

inline Tables check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin,
                    const at::Tensor& coordinates, const at::Tensor& theta) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "rope4d: q and k are (b, heads, s, D), got ", q.sizes(), " and ", k.sizes());
  const auto b = q.size(0), s = q.size(2), d = theta.size(-1);
  TORCH_CHECK(k.size(0) == b && k.size(2) == s && k.size(3) == q.size(3) && k.scalar_type() == q.scalar_type() &&
                  k.device() == q.device(),
              "rope4d: k must agree with q in b, s, D, dtype and device, got q ", q.sizes(), " ", q.scalar_type(), " ",
              q.device(), ", k ", k.sizes(), " ", k.scalar_type(), " ", k.device());
  TORCH_CHECK(theta.dim() == 2 && theta.size(0) == 3 && d > 0 && 2 * d <= q.size(3),
              "rope4d: theta is (3, d) with 0 < 2 d <= D = ", q.size(3), ", got ", theta.sizes());
  const auto dtype = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  for (const auto* table : {&cos, &sin, &coordinates, &theta})
    TORCH_CHECK(table->scalar_type() == dtype && table->device() == q.device(),
                "rope4d: cos, sin, coordinates and theta must be ", dtype, " on ", q.device(), " for q of ",
                q.scalar_type(), ", got ", table->scalar_type(), " on ", table->device());
  auto wide_cos = cos.expand({b, s, d}), wide_sin = sin.expand({b, s, d});
  if (wide_cos.strides() != wide_sin.strides()) wide_cos = wide_cos.contiguous(), wide_sin = wide_sin.contiguous();
  return {wide_cos, wide_sin, dense_rows(coordinates).expand({b, s, 3}), theta.contiguous()};
}

// Like x, with dense rows: empty_like() follows the strides of overlapping inputs too.
inline at::Tensor output_like(const at::Tensor& x) {
  auto out = at::empty_like(x);
  return out.stride(-1) == 1 || x.size(-1) < 2 ? out : at::empty_like(x, at::MemoryFormat::Contiguous);
}

inline void check_writable(const at::Tensor& q, const at::Tensor& k) {
  at::assert_no_internal_overlap(q);
  at::assert_no_internal_overlap(k);
  at::assert_no_overlap(q, k);
}

inline void check_outputs(const at::Tensor& grad, const at::Tensor& out) {
  TORCH_CHECK(grad.sizes() == out.sizes() && grad.scalar_type() == out.scalar_type() && grad.device() == out.device(),
              "rope4d_backward: a gradient ", grad.sizes(), " ", grad.scalar_type(), " ", grad.device(),
              " came for an output ", out.sizes(), " ", out.scalar_type(), " ", out.device());
}

}  // namespace dynimg
