#include "text/normalizer.h"

#include <utility>

#include "base/error.h"
#include "text/unicode.h"

namespace lathe {
namespace {

// Published normalizers at most triple a text (a space becomes U+2581). Steps that multiply without
// end come from a hostile file.
constexpr size_t kMaxGrowth = 64;

void check_growth(size_t size, size_t original_size) {
  if (size > kMaxGrowth * (original_size + 1024)) {
    fail(ErrorCode::kInvalidArgument, "the normalizer blows ", original_size, " bytes up to ",
         size);
  }
}

// U+0020 and whatever else has the White_Space property, in ASCII: what Strip meets in practice.
bool is_strippable(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::string replace_all(std::string_view text, std::string_view from, std::string_view to,
                        size_t original_size) {
  if (from.empty()) return std::string(text);
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  for (size_t found; (found = text.find(from, done)) != std::string_view::npos;) {
    out.append(text, done, found - done).append(to);
    done = found + from.size();
    check_growth(out.size(), original_size);
  }
  out.append(text, done);
  return out;
}

}  // namespace

Normalizer::Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {
  for (const auto& step : steps_) {
    if (step.kind == NormalizerStep::Kind::kReplaceRegex) patterns_.emplace_back(step.pattern);
  }
}

std::string Normalizer::apply(std::string_view text, bool* lost_start) const {
  using Kind = NormalizerStep::Kind;
  std::string now(text);
  size_t next_pattern = 0;
  for (const auto& step : steps_) {
    switch (step.kind) {
      case Kind::kNfc:
        now = normalize(now, NormalForm::kNfc);
        break;
      case Kind::kNfd:
        now = normalize(now, NormalForm::kNfd);
        break;
      case Kind::kNfkc:
        now = normalize(now, NormalForm::kNfkc);
        break;
      case Kind::kNfkd:
        now = normalize(now, NormalForm::kNfkd);
        break;
      case Kind::kLowercase:
        now = to_lower(now);
        break;
      case Kind::kPrepend:
        if (!now.empty()) now.insert(0, step.content);
        break;
      case Kind::kReplace:
        now = replace_all(now, step.pattern, step.content, text.size());
        break;
      case Kind::kReplaceRegex: {
        std::string out;
        size_t done = 0, begin = 0, end = 0;
        for (Regex::Scanner scanner(patterns_[next_pattern++], now); scanner.next(begin, end);) {
          out.append(now, done, begin - done).append(step.content);
          done = end;
          check_growth(out.size(), text.size());
        }
        now = out.append(now, done);
        break;
      }
      case Kind::kStrip: {
        size_t begin = 0, end = now.size();
        while (step.left && begin < end && is_strippable(now[begin])) ++begin;
        while (step.right && end > begin && is_strippable(now[end - 1])) --end;
        if (begin > 0 && lost_start != nullptr) *lost_start = true;
        now = now.substr(begin, end - begin);
        break;
      }
    }
    check_growth(now.size(), text.size());
  }
  return now;
}

}  // namespace lathe
