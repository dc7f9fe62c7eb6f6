#include "cli/eval_caches.h"

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "base/json.h"
#include "cli/key_means.h"

namespace lathe {
namespace {

// What a sequence of so many tokens has in a cache with a codec: chunks become codes as soon as the
// window is behind them, and a block of live ones keeps the sinks among them (coded_cache.h).
KvBlocks blocks_of_sequence(const KvCodecPolicy& policy, int64_t num_tokens) {
  const int64_t first = policy.num_sinks / kBlockSize;  // whole blocks of sinks are no codes
  const int64_t codable = num_tokens - first * kBlockSize - policy.window;
  const int64_t coded =
      std::max<int64_t>(0, codable) / policy.chunk_tokens * (policy.chunk_tokens / kBlockSize);
  const bool keeps_sinks = coded > 0 && policy.num_sinks % kBlockSize != 0;
  return {.live = blocks_for(num_tokens) - coded + (keeps_sinks ? 1 : 0), .coded = coded};
}

}  // namespace

std::vector<RunningKv> named_caches(const std::vector<std::string>& names, const ModelFlags& flags,
                                    const Exec& exec) {
  std::vector<RunningKv> caches;
  for (const std::string& name : names) {
    ModelFlags cache = flags;
    if (std::filesystem::is_regular_file(name)) {
      cache.kv_codec = name;
    } else {
      cache.kv = name;
    }
    caches.emplace_back(cache);
    caches.back().check_device(exec);
  }
  return caches;
}

void load_caches(std::vector<RunningKv>& caches, const LoadedModel& loaded, Exec& exec) {
  for (RunningKv& cache : caches) {
    cache.load(loaded.checkpoint(), exec);
    learn_key_means_for(cache.live_format(), loaded, loaded.model(), exec);
  }
}

MeasuredModel measured(const LoadedModel& loaded, int64_t chunk) {
  return measured(loaded.model(), loaded.kv(), chunk);
}

MeasuredModel measured(Model& model, const RunningKv& kv, int64_t chunk) {
  if (chunk == 0 && kv.codec() != nullptr) {
    // The most at which queries see what they see in decoding.
    const KvCodecPolicy policy = kv.codec()->codec->policy();
    chunk = std::gcd(LogitStream::kChunkRows, std::gcd(policy.window, policy.chunk_tokens));
  }
  return {
      .model = &model,
      .make_cache = [&model, &kv](int64_t tokens) { return kv.make_cache(model, tokens, tokens); },
      .chunk_rows = chunk};
}

void take_common_chunk(const std::vector<MeasuredModel*>& models) {
  int64_t common = 0;
  bool differ = false;
  for (const MeasuredModel* model : models) {
    const int64_t rows = model->chunk_rows > 0 ? model->chunk_rows : LogitStream::kChunkRows;
    common = std::gcd(common, rows);
    differ |= model->chunk_rows != models.front()->chunk_rows;
  }
  if (!differ) return;
  for (MeasuredModel* model : models) model->chunk_rows = common;
}

Json kv_json(const LoadedModel& loaded, int64_t num_tokens) {
  return kv_json(loaded.model(), loaded.kv(), num_tokens);
}

Json kv_json(const Model& model, const RunningKv& kv, int64_t num_tokens) {
  const ModelConfig& config = model.config();
  const double block_numbers =
      2.0 * static_cast<double>(config.num_layers * config.kv_size() * kBlockSize);
  const auto cache = kv.make_cache(model, 1, 1);
  const double live_bits = 8.0 * static_cast<double>(cache->bytes_per_block()) / block_numbers;
  const LoadedKvCodec* codec = kv.codec();
  Json json = {{"name", kv.name()}};
  if (codec != nullptr) {
    const KvCodecFile& file = codec->file;
    json["codec"] = codec->path;
    json["method"] = file.method;
    json["variant"] = file.variant;
    json["bits_per_value"] = kv_bits_per_value(file);
    json["predictor_bytes"] = kv_predictor_bytes(file);
    json["sinks"] = file.num_sinks;
    json["window"] = file.window;
  } else {
    json["bits_per_value"] = live_bits;
  }
  if (num_tokens > 0) {
    const KvBlocks blocks =
        codec != nullptr ? blocks_of_sequence(codec->codec->policy(), num_tokens)
                         : cache->blocks_needed(cache->new_sequence(), num_tokens, num_tokens);
    const double coded_bits = codec != nullptr ? kv_bits_per_value(codec->file) : 0;
    json["sequence_bits_per_value"] = (static_cast<double>(blocks.live) * live_bits +
                                       static_cast<double>(blocks.coded) * coded_bits) *
                                      static_cast<double>(kBlockSize) /
                                      static_cast<double>(num_tokens);
  }
  return json;
}

}  // namespace lathe
