// Mines important tokens (semi_greedy_search.h) from many questions at once: every question is a
// search of its own, and the continuations that they ask for run together in one engine, which
// shares what an alternative has in common with the answer it departs from. The features, the
// target's final hidden state at the draft token, are those of the continuation's first step: no
// forward pass beyond it, and the precision of serving. Results depend on the models alone, not on
// how many questions run together (a row's bits do not depend on its batch on a CPU).
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "compress/semi_greedy_search.h"
#include "engine/engine.h"

namespace lathe {

struct MiningTask {
  std::vector<std::vector<int32_t>> prompts;  // token ids of the questions
  // The checker: outcome of a response. The reference is the target's own outcome, not the truth.
  std::function<Outcome(int64_t question, const std::string& response)> outcome;
  // Whether a question whose greedy answer has this outcome is mined (pass/fail: solved ones only,
  // or nearly every change would count as unimportant). Null: all.
  std::function<bool(const std::string& outcome)> is_usable;
  std::vector<std::string> stop;  // where a response ends, besides end tokens
};

struct MiningOptions {
  int64_t max_new_tokens = 512;
  int64_t max_live = 16;  // questions at once
};

struct MinedQuestion {
  int64_t question = 0;
  bool used = false;            // false: no outcome, or not usable; the rest is empty then
  std::string outcome;          // of the target's greedy answer
  std::vector<int32_t> answer;  // the one that the search ended with
  std::vector<MinedToken> tokens;
  std::vector<float> features;  // [tokens.size(), hidden_size]
  int64_t generated_tokens = 0;
};

class JudgeMiner {
 public:
  // engine: the target's, for at least max_live sequences of the longest prompt + max_new_tokens +
  // 1 (the hidden state at an answer's last token comes with a token behind it, which is dropped).
  // draft: token ids as the target's. Borrows all.
  JudgeMiner(Engine& engine, Model& draft, KvFormat kv_format, const MiningTask& task,
             const MiningOptions& options, Exec& exec);
  ~JudgeMiner();

  // Mines the questions and hands each over as it is done, in no particular order. Throws what
  // the engine's requests throw.
  void run(std::vector<int64_t> questions,
           const std::function<void(const MinedQuestion&)>& on_done);

 private:
  struct Live;
  void start(int64_t question);
  void submit(Live& live, std::vector<int32_t> prompt, int64_t max_tokens);
  void advance(Live& live);
  bool find_next(Live& live);
  void update_choices(Live& live);
  std::string text_of(std::span<const int32_t> tokens) const;
  bool ends(int32_t token) const;

  Engine& engine_;
  Model& draft_;
  const MiningTask& task_;
  MiningOptions options_;
  Exec& exec_;
  std::unique_ptr<KvCache> draft_cache_;
  std::vector<std::unique_ptr<Live>> live_;
  Buffer logits_;
};

// The text before the first of the stop strings.
std::string cut_at_stop(std::string text, const std::vector<std::string>& stops);

}  // namespace lathe
