// What a grammar (a JSON schema, a tool call) allows next. The engine asks before every choice and
// tells what was chosen; implementations live above or beside it.
#pragma once
#include <cstdint>
#include <span>

namespace lathe {

class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets bit t % 64 of words[t / 64] for every token that may come next, and clears the others. At
  // least one must be set (an end token, when nothing else fits). Must not allocate.
  virtual void allowed_tokens(std::span<uint64_t> words) = 0;
  // The token was chosen. One that was not allowed ends the text: only end tokens are allowed then.
  virtual void accept(int32_t token) = 0;
  // Takes the last n accepted tokens back, so that a window of drafts can be tried and dropped.
  // 0 <= n <= min(accepted tokens, kMaxRollback). Must not allocate.
  static constexpr int64_t kMaxRollback = 256;
  virtual void rollback(int64_t n) = 0;
};

}  // namespace lathe
