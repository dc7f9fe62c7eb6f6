#include "cli/speed.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "engine/logits.h"

namespace lathe {
namespace {

// Fixed ids below the size of every vocabulary; speed does not depend on what they mean.
int32_t token_at(int64_t i, int64_t vocab_size) {
  return static_cast<int32_t>((1000 + (i * 7919) % 15000) % vocab_size);
}

// Sequences that are fed rows by hand.
class Sequences {
 public:
  // chooses: the model picks the next tokens by itself where it can, and row() stays empty then.
  Sequences(Model& model, const CacheMaker& make_cache, int64_t count, int64_t max_tokens,
            bool chooses, Exec& exec)
      : model_(model),
        chooses_(chooses && model.can_sample()),
        exec_(exec),
        vocab_size_(model.config().vocab_size),
        cache_(make_cache(count, max_tokens)),
        sequences_(static_cast<std::size_t>(count)),
        logits_(count * vocab_size_ * static_cast<int64_t>(sizeof(float))) {}
  ~Sequences() { clear(); }
  Sequences(const Sequences&) = delete;
  Sequences& operator=(const Sequences&) = delete;

  void clear() {
    for (KvSequence& sequence : sequences_) cache_->release(sequence);
    for (KvSequence& sequence : sequences_) sequence = {};
  }

  // Appends tokens to one sequence; the logits of the last one are then in row 0.
  void append(std::size_t which, std::span<const int32_t> tokens) {
    begin();
    add_rows(which, tokens);
    want_logits();
    forward();
  }

  // Appends the same tokens to the first `count` sequences, in steps of chunk rows, each filled
  // with one prompt after the other.
  void prefill(std::size_t count, std::span<const int32_t> tokens, int64_t chunk) {
    begin();
    for (std::size_t which = 0; which < count; ++which) {
      for (std::size_t done = 0; done < tokens.size();) {
        const auto room = static_cast<std::size_t>(chunk) - token_ids_.size();
        const std::size_t size = std::min(room, tokens.size() - done);
        add_rows(which, tokens.subspan(done, size));
        done += size;
        if (done == tokens.size()) want_logits();
        if (static_cast<int64_t>(token_ids_.size()) < chunk) continue;
        forward();
        begin();
      }
    }
    if (!token_ids_.empty()) forward();
  }

  // Appends one token to every sequence; row i has the logits of sequence i.
  void step(std::span<const int32_t> tokens) {
    begin();
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      add_rows(i, tokens.subspan(i, 1));
      want_logits();
    }
    forward();
  }

  std::span<const float> row(std::size_t i) const {
    return {logits_.as<float>() + static_cast<int64_t>(i) * vocab_size_,
            static_cast<std::size_t>(vocab_size_)};
  }
  int32_t best(std::size_t i) const {
    if (chooses_) return chosen_[i];
    return static_cast<int32_t>(std::max<int64_t>(argmax(row(i)), 0));
  }

 private:
  void begin() {
    token_ids_.clear();
    positions_.clear();
    rows_.clear();
    logit_rows_.clear();
  }

  void add_rows(std::size_t which, std::span<const int32_t> tokens) {
    KvSequence& sequence = sequences_[which];
    const auto count = static_cast<int64_t>(tokens.size());
    LATHE_CHECK(cache_->reserve(sequence, count));  // sized for the whole run
    rows_.push_back({&sequence, static_cast<int64_t>(token_ids_.size()), count});
    for (int64_t i = 0; i < count; ++i) positions_.push_back(sequence.num_tokens + i);
    token_ids_.insert(token_ids_.end(), tokens.begin(), tokens.end());
  }

  // Of the last row added.
  void want_logits() { logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()) - 1); }

  void forward() {
    const ForwardBatch batch = {.token_ids = token_ids_,
                                .positions = positions_,
                                .sequences = rows_,
                                .logit_rows = logit_rows_};
    if (chooses_) {
      greedy_.resize(logit_rows_.size());
      chosen_.resize(logit_rows_.size());
      model_.forward_and_sample(batch, *cache_, {.rows = greedy_}, {.tokens = chosen_}, nullptr,
                                exec_);
      return;
    }
    model_.forward(batch, *cache_, logit_rows_.empty() ? nullptr : logits_.as<float>(), nullptr,
                   exec_);
  }

  Model& model_;
  const bool chooses_;
  std::vector<SamplingRow> greedy_;
  std::vector<int32_t> chosen_;
  Exec& exec_;
  int64_t vocab_size_;
  std::unique_ptr<KvCache> cache_;
  std::vector<KvSequence> sequences_;
  std::vector<int32_t> token_ids_;
  std::vector<int64_t> positions_;
  std::vector<KvRows> rows_;
  std::vector<int32_t> logit_rows_;
  Buffer logits_;  // [number of sequences, vocab_size]
};

std::vector<int32_t> make_tokens(int64_t count, int64_t first, int64_t vocab_size) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(token_at(first + i, vocab_size));
  return tokens;
}

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double time_prefill(Sequences& sequences, const SpeedOptions& options, int64_t vocab_size) {
  sequences.clear();
  const std::vector<int32_t> tokens = make_tokens(options.prompt_tokens, 0, vocab_size);
  const auto start = Clock::now();
  sequences.prefill(static_cast<std::size_t>(options.batch), tokens, options.chunk_tokens);
  return static_cast<double>(options.batch * options.prompt_tokens) / seconds_since(start);
}

// profile (optional): cleared when decoding begins.
double time_decode(Sequences& sequences, const SpeedOptions& options, int64_t vocab_size,
                   int64_t steps, StepProfile* profile = nullptr) {
  sequences.clear();
  const std::vector<int32_t> tokens = make_tokens(options.depth, 0, vocab_size);
  sequences.prefill(static_cast<std::size_t>(options.batch), tokens, options.chunk_tokens);
  std::vector<int32_t> next = make_tokens(options.batch, 100, vocab_size);
  if (profile != nullptr) *profile = {};
  const auto start = Clock::now();
  for (int64_t step = 0; step < steps; ++step) {
    sequences.step(next);
    for (std::size_t i = 0; i < next.size(); ++i) next[i] = sequences.best(i);
  }
  return static_cast<double>(options.batch * steps) / seconds_since(start);
}

}  // namespace

CacheMaker live_cache(const Model& model, KvFormat format) {
  return [&model, format](int64_t num_sequences, int64_t max_sequence_tokens) {
    return model.make_cache(format, num_sequences * blocks_for(max_sequence_tokens) * kBlockSize,
                            max_sequence_tokens);
  };
}

void validate(const SpeedOptions& options, const ModelConfig& config) {
  const auto check = [](const char* flag, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      fail(ErrorCode::kInvalidArgument, flag, " ", value, ": must be from ", low, " to ", high);
    }
  };
  const int64_t context = config.max_position_embeddings;
  check("-p", options.prompt_tokens, 0, context);
  check("-n", options.decode_tokens, 0, context);
  check("-b", options.batch, 1, 4096);
  check("--depth", options.depth, 1, context - options.decode_tokens);
  check("--chunk", options.chunk_tokens, 1, 1 << 20);
  check("--repetitions", options.repetitions, 1, 1000);
}

SpeedResult measure_speed(Model& model, const CacheMaker& make_cache, const SpeedOptions& options,
                          Exec& exec) {
  const int64_t vocab_size = model.config().vocab_size;
  const int64_t longest = std::max(options.prompt_tokens, options.depth + options.decode_tokens);
  Sequences sequences(model, make_cache, options.batch, longest, true, exec);
  SpeedResult result;
  if (options.prompt_tokens > 0) {
    SpeedOptions warm_up = options;
    warm_up.batch = 1;
    time_prefill(sequences, warm_up, vocab_size);
    for (int i = 0; i < options.repetitions; ++i) {
      result.prefill.push_back(time_prefill(sequences, options, vocab_size));
    }
  }
  if (options.decode_tokens > 0) {
    time_decode(sequences, options, vocab_size, std::min<int64_t>(options.decode_tokens, 8));
    for (int i = 0; i < options.repetitions; ++i) {
      result.decode.push_back(time_decode(sequences, options, vocab_size, options.decode_tokens));
    }
  }
  return result;
}

AllReduceTimes measure_all_reduce(Model& model, const CacheMaker& make_cache,
                                  const SpeedOptions& options, Exec& exec) {
  const int64_t vocab_size = model.config().vocab_size;
  Sequences sequences(model, make_cache, options.batch, options.depth + options.decode_tokens, true,
                      exec);
  StepProfile profile;
  model.set_profile(&profile);
  time_decode(sequences, options, vocab_size, std::min<int64_t>(options.decode_tokens, 8));
  const double tokens_per_second =
      time_decode(sequences, options, vocab_size, options.decode_tokens, &profile);
  model.set_profile(nullptr);
  const int64_t nanoseconds = profile.nanoseconds[static_cast<std::size_t>(Stage::kAllReduce)];
  return {.step_seconds = static_cast<double>(options.batch) / tokens_per_second,
          .all_reduce_seconds =
              1e-9 * static_cast<double>(nanoseconds) / static_cast<double>(profile.steps)};
}

void check_forward(Model& model, const CacheMaker& make_cache, Exec& exec) {
  constexpr int64_t kLength = 24;
  constexpr std::size_t kBatch = 3;
  const int64_t vocab_size = model.config().vocab_size;
  Sequences sequences(model, make_cache, kBatch, kLength, false, exec);
  const double tolerance = model.batch_tolerance();
  const auto expect_equal = [&](std::span<const float> a, std::span<const float> b,
                                const char* what) {
    double difference = 0, size = 0;
    bool is_equal = true;
    for (std::size_t i = 0; i < a.size(); ++i) {
      is_equal = is_equal && std::memcmp(&a[i], &b[i], sizeof(float)) == 0;
      difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
      size += double{b[i]} * b[i];
    }
    // Written so that a NaN is a failure.
    if (std::isfinite(size) && (is_equal || difference < tolerance * tolerance * size)) return;
    fail(
        ErrorCode::kInternal, "the logits of ", what,
        " differ from those of one token at a time by ", std::sqrt(difference / size),
        " of their size (", tolerance,
        " is allowed); no speed is reported. Try LATHE_FORCE_KERNEL=ref, and report this as a bug");
  };
  std::vector<std::vector<float>> alone;
  for (std::size_t s = 0; s < kBatch; ++s) {
    const auto tokens = make_tokens(kLength, 1000 * static_cast<int64_t>(s), vocab_size);
    sequences.clear();
    for (const int32_t& token : tokens) sequences.append(0, {&token, 1});
    const auto logits = sequences.row(0);
    alone.emplace_back(logits.begin(), logits.end());
    sequences.clear();
    sequences.append(0, tokens);
    expect_equal(sequences.row(0), alone.back(), "a chunk of tokens");
  }
  sequences.clear();
  for (int64_t i = 0; i < kLength; ++i) {
    std::vector<int32_t> tokens;
    for (std::size_t s = 0; s < kBatch; ++s) {
      tokens.push_back(token_at(1000 * static_cast<int64_t>(s) + i, vocab_size));
    }
    sequences.step(tokens);
  }
  for (std::size_t s = 0; s < kBatch; ++s) {
    expect_equal(sequences.row(s), alone[s], "a batch of sequences");
  }
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

}  // namespace lathe
