#include "gpu_worker/cuda/kernels/product.cuh"

namespace isotherm::gpu {
namespace {

// x[c..c+8) (+)= columns of the row at `from`.
template <class Format, bool kAdd>
__device__ void DecodeRow(const unsigned char* from, int model_dim, float* x) {
  for (int c = 8 * threadIdx.x; c < model_dim; c += 8 * blockDim.x) {
    float w[8];
    Format::Decode8(Format::Load8(from, c), c, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[c + i] = kAdd ? x[c + i] + w[i] : w[i];
  }
}

template <class Format, class PositionFormat>
__global__ void __launch_bounds__(256) EmbedKernel(EmbedArgs args) {
  const StepHeader& header = *args.step.header;
  const int row = blockIdx.x;
  if (row == 0 && threadIdx.x == 0) {
    StepState state;
    state.start_ns = GlobalTimer();
    state.next_sequence = header.next_sequence;
    if (header.follows != 0) {
      state.next_sequence = args.step.state->next_sequence;
      if (args.step.state->failure != kStepOk || args.step.state->stopped != 0 ||
          LoadSystem32(args.withdrawn) == static_cast<uint32_t>(header.number)) {
        state.failure = kStepNotBegun;
        // No kernel behind this one finds work to do.
        auto& inputs = const_cast<StepHeader&>(header);
        inputs.num_rows = inputs.num_logits = 0;
      }
    }
    *args.step.state = state;
  }
  if (row >= header.num_rows) return;
  const StepRow& what = args.step.rows[row];
  const int token = what.token >= 0 ? what.token : max(args.step.tokens[row], 0);
  const unsigned char* const from = args.embedding + token * args.embedding_row_bytes;
  float* const x = args.x + int64_t{row} * args.model_dim;
  DecodeRow<Format, false>(from, args.model_dim, x);
  if (args.positions != nullptr) {  // each thread adds to what it wrote itself
    DecodeRow<PositionFormat, true>(
        args.positions + int64_t{what.position + args.position_offset} * args.positions_row_bytes,
        args.model_dim, x);
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
    if (args.positions == nullptr) {
      EmbedKernel<decltype(format), F32Format><<<max_rows, 256, 0, stream>>>(args);
      return;
    }
    ForFormat(args.positions_dtype, [&](auto positions) {
      EmbedKernel<decltype(format), decltype(positions)><<<max_rows, 256, 0, stream>>>(args);
    });
  });
}

}  // namespace isotherm::gpu
