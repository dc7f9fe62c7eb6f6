#include "cache/layer_chain.h"

#include "base/error.h"

namespace lathe {

LayerChain plan_layer_chain(const KvCodec& codec, int64_t num_layers) {
  LayerChain chain;
  std::vector<int64_t> last_use(static_cast<std::size_t>(num_layers), -1);  // layer needing it last
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const int64_t base = codec.base_layer(layer);
    if (base < -1 || base >= layer) {
      fail(ErrorCode::kInvalidArgument, "cache codec: layer ", layer, " is based on layer ", base);
    }
    chain.base.push_back(base);
    if (base >= 0) last_use[static_cast<std::size_t>(base)] = layer;
  }
  std::vector<int64_t> busy_until;  // per buffer, the last layer that needs its content
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const auto i = static_cast<std::size_t>(layer);
    // A buffer whose content is needed up to this layer itself may be written in place.
    std::size_t chosen = busy_until.size();
    for (std::size_t b = 0; b < busy_until.size(); ++b) {
      if (busy_until[b] <= layer) {
        chosen = b;
        // The base's own buffer is the best: the rows are in the cache.
        if (chain.base[i] >= 0 &&
            chain.buffer[static_cast<std::size_t>(chain.base[i])] == static_cast<int64_t>(b)) {
          break;
        }
      }
    }
    if (chosen == busy_until.size()) busy_until.push_back(-1);
    chain.buffer.push_back(static_cast<int64_t>(chosen));
    busy_until[chosen] = last_use[i];
  }
  chain.num_buffers = static_cast<int64_t>(busy_until.size());
  return chain;
}

}  // namespace lathe
