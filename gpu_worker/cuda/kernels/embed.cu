#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

template <class Format>
__global__ void __launch_bounds__(256) EmbedKernel(EmbedArgs args) {
  const StepHeader& header = *args.step.header;
  const int row = blockIdx.x;
  if (row == 0 && threadIdx.x == 0) {
    StepState state;
    state.start_ns = GlobalTimer();
    state.next_sequence = header.next_sequence;
    *args.step.state = state;
  }
  if (row >= header.num_rows) return;
  const StepRow& what = args.step.rows[row];
  const unsigned char* const from = args.embedding + what.token * args.embedding_row_bytes;
  float* const x = args.x + int64_t{row} * args.model_dim;
  for (int c = 8 * threadIdx.x; c < args.model_dim; c += 8 * blockDim.x) {
    float w[8];
    Format::Decode8(Format::Load8(from, c), c, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[c + i] = w[i];
  }
  for (int i = threadIdx.x; i < args.rope_half; i += blockDim.x) {
    double sin, cos;
    sincos(static_cast<double>(what.position) * args.rope_frequencies[i], &sin, &cos);
    args.rope_cos[int64_t{row} * args.rope_half + i] = static_cast<float>(cos);
    args.rope_sin[int64_t{row} * args.rope_half + i] = static_cast<float>(sin);
  }
}

}  // namespace

void LaunchEmbed(const EmbedArgs& args, int max_rows, cudaStream_t stream) {
  ForFormat(args.dtype, [&](auto format) {
    EmbedKernel<decltype(format)><<<max_rows, 256, 0, stream>>>(args);
  });
}

}  // namespace isotherm::gpu
