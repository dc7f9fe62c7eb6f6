#include "cache/plane_slots.h"

#include <algorithm>

namespace lathe {

PlaneSlots plan_plane_slots(const KvCodecFile& file, PlaneReaders readers) {
  // Planes are made in the order keys 0, values 0, keys 1, ...: step 2 l and 2 l + 1.
  const int64_t num_steps = 2 * file.num_layers();
  const auto plane = [&](int64_t step) -> const KvPlane& {
    return (step % 2 == 0 ? file.keys : file.values)[static_cast<std::size_t>(step / 2)];
  };
  constexpr int64_t kNever = -1;
  std::vector<int64_t> last_use;  // per step, the last one that needs its rows
  for (int64_t step = 0; step < num_steps; ++step) {
    last_use.push_back(readers == PlaneReaders::kCaller ? step | 1 : kNever);
    for (const KvPredictorInput& input : plane(step).predictor.inputs) {
      if (input.kind == KvPredictorInput::Kind::kLatent) continue;
      const int64_t made =
          2 * input.index + (input.kind == KvPredictorInput::Kind::kValues ? 1 : 0);
      int64_t& last = last_use[static_cast<std::size_t>(made)];
      last = std::max(last, step);
    }
  }
  PlaneSlots slots;
  std::vector<int64_t> busy_until;
  for (int64_t step = 0; step < num_steps; ++step) {
    std::vector<int64_t>& of_layers = step % 2 == 0 ? slots.keys : slots.values;
    if (last_use[static_cast<std::size_t>(step)] == kNever) {
      of_layers.push_back(PlaneSlots::kNone);
      continue;
    }
    std::size_t slot = 0;
    while (slot < busy_until.size() && busy_until[slot] >= step) ++slot;
    if (slot == busy_until.size()) busy_until.push_back(-1);
    busy_until[slot] = last_use[static_cast<std::size_t>(step)];
    of_layers.push_back(static_cast<int64_t>(slot));
  }
  slots.num_slots = static_cast<int64_t>(busy_until.size());
  return slots;
}

}  // namespace lathe
