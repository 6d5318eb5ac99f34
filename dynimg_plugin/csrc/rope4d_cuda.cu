// The CUDA operator: launches the phases of rope4d_block.h. Only light headers: a toolkit without cuBLAS will do.
// Compiled with --fmad=false: a * c - b * s rounds its products as PyTorch's eager kernels do.
#define HOST_DEVICE __host__ __device__ __forceinline__

#include "rope4d_block.h"

#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

namespace dynimg {
namespace {

template <typename acc>
__device__ acc* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<acc*>(bytes);
}

template <typename scalar, int V>
__global__ void __launch_bounds__(THREADS) forward_kernel(const Job<scalar, V> job) {
  auto* shared = shared_memory<typename AccOf<scalar>::type>();
  const Span span = span_of(job, blockIdx.x);
  fill_tables(job, span, threadIdx.x, shared);
  __syncthreads();
  rotate_items(job, span, threadIdx.x, shared);
}

template <typename scalar, int V>
__global__ void __launch_bounds__(THREADS) backward_kernel(const Job<scalar, V> job) {
  auto* shared = shared_memory<typename AccOf<scalar>::type>();
  const Span span = span_of(job, blockIdx.x);
  fill_tables(job, span, threadIdx.x, shared);
  __syncthreads();
  unrotate_items(job, span, threadIdx.x, shared);
  if (!job.parts) return;
  __syncthreads();
  add_groups(job, blockIdx.x, threadIdx.x, shared);
}

template <typename scalar, int V>
int64_t shared_size(const Job<scalar, V>& job) {
  return job.shared_words() * static_cast<int64_t>(sizeof(typename AccOf<scalar>::type));
}

void check_pairs(const at::Tensor& theta) {
  TORCH_CHECK(theta.size(1) <= MAX_PAIRS, "rope4d: the CUDA operator takes rotary dimensions up to ", 2 * MAX_PAIRS,
              ", got ", 2 * theta.size(1), "; use implementation='reference'");
}

#define DISPATCH(TYPE, ...) AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, "rope4d", __VA_ARGS__)

void rotate(const at::Tensor& q, const at::Tensor& k, const at::Tensor& q_out, const at::Tensor& k_out,
            const Tables& tables, bool interleaved, bool match_eager) {
  if (!q.numel() && !k.numel()) return;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  DISPATCH(q.scalar_type(), [&] {
    with_width<scalar_t>({q, k, q_out, k_out}, tables.theta.size(1), [&](auto width) {
      auto job = forward_job<scalar_t, width>(q, k, q_out, k_out, tables, interleaved, match_eager);
      const auto blocks = cut(job, q.size(0));
      forward_kernel<scalar_t, width><<<static_cast<unsigned>(blocks), THREADS, shared_size(job), stream>>>(job);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
}

std::tuple<at::Tensor, at::Tensor> rope4d(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cos,
                                          const at::Tensor& sin, const at::Tensor& coordinates,
                                          const at::Tensor& theta, bool interleaved, bool match_eager) {
  const c10::cuda::CUDAGuard guard(q.device());
  const auto tables = check(q, k, cos, sin, coordinates, theta);
  check_pairs(theta);
  const auto q_in = dense_rows(q), k_in = dense_rows(k);
  auto q_out = output_like(q_in), k_out = output_like(k_in);
  rotate(q_in, k_in, q_out, k_out, tables, interleaved, match_eager);
  return {q_out, k_out};
}

void rope4d_(at::Tensor& q, at::Tensor& k, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& coordinates,
             const at::Tensor& theta, bool interleaved, bool match_eager) {
  const c10::cuda::CUDAGuard guard(q.device());
  const auto tables = check(q, k, cos, sin, coordinates, theta);
  check_pairs(theta);
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
  const c10::cuda::CUDAGuard guard(grad_q.device());
  const auto tables = check(grad_q, grad_k, cos, sin, coordinates, theta);
  check_pairs(theta);
  check_outputs(grad_q, q_out);
  check_outputs(grad_k, k_out);
  const auto gq = dense_rows(grad_q), gk = dense_rows(grad_k), yq = dense_rows(q_out), yk = dense_rows(k_out);
  auto dq = output_like(gq), dk = output_like(gk);
  const auto d = theta.size(1);
  auto parts = at::empty({0, 3, d}, theta.options());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  if (gq.numel() || gk.numel()) DISPATCH(gq.scalar_type(), [&] {
    with_width<scalar_t>({gq, gk, yq, yk, dq, dk}, d, [&](auto width) {
      auto job = backward_job<scalar_t, width>(gq, gk, yq, yk, dq, dk, tables, interleaved);
      const auto blocks = cut(job, gq.size(0));
      if (need_theta) parts = theta_parts(job, blocks, theta);
      backward_kernel<scalar_t, width><<<static_cast<unsigned>(blocks), THREADS, shared_size(job), stream>>>(job);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return {dq, dk, at::sum(parts, 0)};
}

}  // namespace

TORCH_LIBRARY_IMPL(dynimg, CUDA, m) {
  m.impl("rope4d", &rope4d);
  m.impl("rope4d_", &rope4d_);
  m.impl("rope4d_backward", &rope4d_backward);
}

}  // namespace dynimg
