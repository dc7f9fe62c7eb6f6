// The caches that an evaluation measures a model with: the one of --kv, or those of --caches.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/flags.h"
#include "cli/kv_flags.h"
#include "cli/loaded_model.h"
#include "eval/perplexity.h"

namespace lathe {

// Of --caches: codecs' files, or else names of --kv. Reads no file. Throws kInvalidArgument for a
// name that does not exist, or that this device does not read.
std::vector<RunningKv> named_caches(const std::vector<std::string>& names, const ModelFlags& flags,
                                    const Exec& exec);
// Reads their codecs, and learns what their formats need of the model. Throws what
// load_kv_codec() throws.
void load_caches(std::vector<RunningKv>& caches, const LoadedModel& loaded, Exec& exec);

// The model as it was loaded, with the cache of --kv. chunk: positions computed at once; 0: as many
// as leave every query what it sees in decoding.
MeasuredModel measured(const LoadedModel& loaded, int64_t chunk);
// With another cache; both must outlive it.
MeasuredModel measured(Model& model, const RunningKv& kv, int64_t chunk);
// What queries of a coded cache see depends on the chunk, so it must suit all that are compared.
void take_common_chunk(const std::vector<MeasuredModel*>& models);

// Bits of a number: of a code with its scales and latents ("bits_per_value"), and on average of a
// sequence of num_tokens tokens, by the bytes of its blocks, those that are exact included
// ("sequence_bits_per_value"; not with 0).
nlohmann::ordered_json kv_json(const LoadedModel& loaded, int64_t num_tokens);
nlohmann::ordered_json kv_json(const Model& model, const RunningKv& kv, int64_t num_tokens);

}  // namespace lathe
