// What a draft proposes for one sequence, and what it was drawn from.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lathe {

struct TokenProb {
  int32_t token = 0;
  double prob = 0;
};

// Of a draft's distribution; the mass behind it is at most that of the least probable of so many.
inline constexpr int64_t kMaxDraftSupport = 256;
// Tokens of one window. AutoJudge accepts 40 and more in a row.
inline constexpr int64_t kMaxDraftTokens = 64;

// Draft tokens d_1..d_k that follow a sequence's last token.
struct DraftWindow {
  std::vector<int32_t> tokens;
  // The distribution that d_i was drawn from: probs[prob_end[i - 1] .. prob_end[i]), ascending by
  // token, empty when d_i is a function of the tokens before it.
  std::vector<TokenProb> probs;
  std::vector<std::size_t> prob_end;
  // [tokens.size(), logits_width]: what each was chosen by, where the drafter keeps it; of the ids
  // that draft and target have in common.
  std::vector<float> logits;
  std::size_t logits_width = 0;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  void clear() {
    tokens.clear();
    probs.clear();
    prob_end.clear();
    logits.clear();
  }
  // Behind the last add(), `probs` may have been appended to: they are this token's.
  void add(int32_t token) {
    tokens.push_back(token);
    prob_end.push_back(probs.size());
  }
  std::span<const float> logits_of(int64_t idx) const {
    if (logits.empty()) return {};
    return std::span(logits).subspan(static_cast<std::size_t>(idx) * logits_width, logits_width);
  }
  std::span<const TokenProb> distribution(int64_t idx) const {
    const auto i = static_cast<std::size_t>(idx);
    const std::size_t begin = i == 0 ? 0 : prob_end[i - 1];
    return std::span(probs).subspan(begin, prob_end[i] - begin);
  }
};

}  // namespace lathe
