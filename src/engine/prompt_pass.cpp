#include "engine/prompt_pass.h"

#include <algorithm>
#include <new>
#include <numeric>

#include "engine/logits.h"

namespace lathe {
namespace {

// 152,000 logits of so many rows are 20 MB.
constexpr int64_t kLogitRows = 32;

// The k most probable tokens, the lowest id first among equals.
std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, double log_sum, int64_t k) {
  const auto better = [](const TokenLogprob& a, const TokenLogprob& b) {
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token);
  };
  std::vector<TokenLogprob> top;  // a heap, the least probable first
  if (k <= 0) return top;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const TokenLogprob candidate = {static_cast<int32_t>(i), logits[i]};
    if (static_cast<int64_t>(top.size()) < k) {
      top.push_back(candidate);
      std::push_heap(top.begin(), top.end(), better);
    } else if (better(candidate, top.front())) {
      std::pop_heap(top.begin(), top.end(), better);
      top.back() = candidate;
      std::push_heap(top.begin(), top.end(), better);
    }
  }
  std::sort_heap(top.begin(), top.end(), better);
  for (TokenLogprob& entry : top) {
    entry.logprob = static_cast<float>(static_cast<double>(entry.logprob) - log_sum);
  }
  return top;
}

}  // namespace

PromptPass::PromptPass(Model& model, KvFormat kv_format, int64_t max_tokens, Exec& exec)
    : model_(model), kv_format_(kv_format), max_tokens_(max_tokens), exec_(exec) {}

PromptPass::~PromptPass() = default;

void PromptPass::add(std::shared_ptr<PromptPassJob> job) {
  const auto size = static_cast<int64_t>(job->tokens.size());
  if (size == 0) fail(ErrorCode::kInvalidArgument, "the text is empty");
  if (size > max_tokens_) {
    fail(ErrorCode::kInvalidArgument, "the text has ", size, " tokens; at most ", max_tokens_);
  }
  for (const int32_t token : job->tokens) {
    if (token >= 0 && token < model_.config().vocab_size) continue;
    fail(ErrorCode::kInvalidArgument, "the text has token ", token, "; the vocabulary has ",
         model_.config().vocab_size, " tokens");
  }
  const std::lock_guard lock(mutex_);
  jobs_.push_back(std::move(job));
}

bool PromptPass::has_work() const {
  const std::lock_guard lock(mutex_);
  return !jobs_.empty();
}

bool PromptPass::step(int64_t max_rows) {
  {
    const std::lock_guard lock(mutex_);
    if (jobs_.empty()) return false;
    if (jobs_.front() != current_) {
      current_ = jobs_.front();
      position_ = -1;
    }
  }
  if (current_->canceled) {
    end();
    return true;
  }
  try {
    if (position_ < 0) begin();
    const int64_t left = static_cast<int64_t>(current_->tokens.size()) - position_;
    const bool wants_logits = current_->wants == PromptPassJob::Wants::kLogprobs;
    compute(std::min({left, max_rows, wants_logits ? kLogitRows : max_rows}));
    if (position_ < static_cast<int64_t>(current_->tokens.size())) return true;
    current_->on_done(std::move(result_));
  } catch (const Error& error) {
    current_->on_error(error);
  } catch (const std::bad_alloc&) {
    current_->on_error(Error(ErrorCode::kOutOfMemory, "out of memory"));
  }
  end();
  return true;
}

void PromptPass::begin() {
  const auto size = static_cast<int64_t>(current_->tokens.size());
  if (cache_ == nullptr || cache_->max_sequence_tokens() < size) {
    sequence_ = {};
    cache_.reset();  // before the new one takes memory
    cache_ = model_.make_cache(kv_format_, size, size);
  }
  sequence_ = cache_->new_sequence();
  position_ = 0;
  hidden_sum_.assign(static_cast<std::size_t>(model_.config().hidden_size), 0.0);
  result_ = {};
}

void PromptPass::compute(int64_t num_rows) {
  if (!cache_->reserve(sequence_, num_rows)) {
    fail(ErrorCode::kOutOfMemory, "no room in the cache for ", num_rows, " tokens");
  }
  const auto size = static_cast<int64_t>(current_->tokens.size());
  const PromptPassJob::Wants wants = current_->wants;
  const auto rows = static_cast<std::size_t>(num_rows);
  positions_.resize(rows);
  std::iota(positions_.begin(), positions_.end(), position_);
  logit_rows_.resize(rows);
  std::iota(logit_rows_.begin(), logit_rows_.end(), 0);
  const bool is_last_chunk = position_ + num_rows == size;
  if (wants == PromptPassJob::Wants::kLast) {
    logit_rows_.assign(is_last_chunk ? 1 : 0, static_cast<int32_t>(num_rows - 1));
  }
  const KvRows kv_rows = {.sequence = &sequence_, .row_begin = 0, .num_rows = num_rows};
  const ForwardBatch batch = {
      .token_ids = std::span(current_->tokens).subspan(static_cast<std::size_t>(position_), rows),
      .positions = positions_,
      .sequences = {&kv_rows, 1},
      .logit_rows = logit_rows_};
  const ModelConfig& config = model_.config();
  const auto num_outputs = static_cast<int64_t>(logit_rows_.size());
  const auto float_size = static_cast<int64_t>(sizeof(float));
  float* logits = nullptr;
  float* hidden = nullptr;
  if (wants == PromptPassJob::Wants::kLogprobs) {
    logits_.reserve(num_outputs * config.vocab_size * float_size);
    logits = logits_.as<float>();
  } else {
    hidden_.reserve(std::max<int64_t>(1, num_outputs) * config.hidden_size * float_size);
    hidden = hidden_.as<float>();
  }
  model_.forward(batch, *cache_, logits, hidden, exec_);
  if (wants == PromptPassJob::Wants::kLogprobs) {
    take_logprobs(num_rows);
  } else {
    for (int64_t i = 0; i < num_outputs; ++i) {
      for (int64_t j = 0; j < config.hidden_size; ++j) {
        hidden_sum_[static_cast<std::size_t>(j)] +=
            static_cast<double>(hidden[i * config.hidden_size + j]);
      }
    }
  }
  position_ += num_rows;
  if (position_ < size || wants == PromptPassJob::Wants::kLogprobs) return;
  const double count = wants == PromptPassJob::Wants::kMean ? static_cast<double>(size) : 1.0;
  for (const double sum : hidden_sum_) result_.hidden.push_back(static_cast<float>(sum / count));
}

void PromptPass::take_logprobs(int64_t num_rows) {
  const auto size = static_cast<int64_t>(current_->tokens.size());
  const auto vocab_size = static_cast<std::size_t>(model_.config().vocab_size);
  for (int64_t i = 0; i < num_rows && position_ + i + 1 < size; ++i) {
    const std::span<const float> logits(logits_.as<float>() + i * static_cast<int64_t>(vocab_size),
                                        vocab_size);
    const double log_sum = log_sum_exp(logits);
    const int32_t next = current_->tokens[static_cast<std::size_t>(position_ + i + 1)];
    result_.logprobs.push_back(
        static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(next)]) - log_sum));
    result_.top.push_back(top_logprobs(logits, log_sum, current_->num_top));
  }
}

void PromptPass::end() {
  if (cache_ != nullptr) cache_->release(sequence_);
  const std::lock_guard lock(mutex_);
  jobs_.pop_front();
  current_.reset();
}

}  // namespace lathe
