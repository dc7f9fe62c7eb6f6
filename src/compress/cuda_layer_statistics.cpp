#include "compress/cuda_layer_statistics.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lathe {

void add_cuda_input(LayerStatistics& statistics, const CollectOptions& options, bool held_out,
                    LinearKind kind, int64_t expert, const float* x, int64_t rows, int64_t k,
                    CudaStream stream) {
  if (std::find(options.kinds.begin(), options.kinds.end(), kind) == options.kinds.end()) return;
  auto place = statistics.inputs.find({kind, expert});
  if (place == statistics.inputs.end()) {
    LayerStatistics::Input input{
        .calibration = InputStatistics(k, false), .held_out = std::nullopt, .rotated_amax = {}};
    input.cuda_calibration.emplace(k, options.gram, options.amax_blocks);
    if (options.held_out_every > 0) {
      input.cuda_held_out.emplace(k, options.gram, options.amax_blocks);
    }
    place = statistics.inputs.emplace(std::pair(kind, expert), std::move(input)).first;
  }
  LayerStatistics::Input& input = place->second;
  (held_out ? *input.cuda_held_out : *input.cuda_calibration).add(x, rows, stream);
}

void finish_cuda_inputs(LayerStatistics& statistics) {
  for (auto& [key, input] : statistics.inputs) {
    if (!input.cuda_calibration) continue;
    input.cuda_calibration->check();
    input.rotated_amax = input.cuda_calibration->rotated_amax();
    if (!input.cuda_held_out) continue;
    input.cuda_held_out->check();
    const std::vector<float> more = input.cuda_held_out->rotated_amax();
    for (std::size_t i = 0; i < more.size(); ++i) {
      input.rotated_amax[i] = std::max(input.rotated_amax[i], more[i]);
    }
  }
}

void bring_to_host(LayerStatistics& statistics) {
  for (auto& [key, input] : statistics.inputs) {
    if (input.cuda_calibration) input.calibration = input.cuda_calibration->to_host();
    if (input.cuda_held_out) input.held_out = input.cuda_held_out->to_host();
    input.cuda_calibration.reset();
    input.cuda_held_out.reset();
  }
}

}  // namespace lathe
