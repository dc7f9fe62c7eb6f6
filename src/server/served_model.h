// The model behind the API, and what one request may ask of it.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "base/json_limits.h"
#include "engine/sampling_params.h"
#include "formats/model_config.h"
#include "grammar/token_trie.h"
#include "server/served_speculation.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace lathe {

struct ServedModel {
  std::string id;       // the name that requests use
  int64_t created = 0;  // seconds since 1970
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: not a chat model
  std::shared_ptr<const TokenTrie> vocabulary;  // for answers in a given form
  int64_t vocab_size = 0;                       // of the logits
  int64_t max_tokens = 0;                       // prompt and output of one choice
  SamplingParams defaults;                      // what a request leaves open
  ServedSpeculation speculation{};
};

// Every field has a flag of `lathe serve` and its default in docs/server.md.
struct ApiLimits {
  int64_t max_choices = 128;   // of one request: prompts times n
  int64_t max_queue = 256;     // choices that wait for the engine; more get 429
  int64_t max_seconds = 1800;  // of one request; 0: no limit
  JsonLimits json{.max_depth = 64, .max_keys = 4096, .max_values = 1'000'000};
};

}  // namespace lathe
