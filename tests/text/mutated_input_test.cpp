// Damaged tokenizer.json files and chat templates: whatever the damage, an Error or a result, never
// a crash or a hang. A small, seeded stand-in for the fuzz targets, over the same seeds.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/rng.h"
#include "support/shared_data.h"
#include "text/jinja.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json.h"
#include "text/unicode.h"

namespace lathe {
namespace {

std::vector<std::string> seeds(const std::string& name) {
  std::vector<std::string> paths, contents;
  for (const auto& entry :
       std::filesystem::directory_iterator(golden_path("../../fuzz/corpus/" + name))) {
    paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) contents.push_back(read_file(path));
  return contents;
}

// One to four cuts, copies (also out of another seed) and changed bytes.
std::string damaged(std::string text, const std::vector<std::string>& others, Rng& rng) {
  const auto below = [&](size_t limit) {
    return limit == 0 ? 0 : static_cast<size_t>(rng.next_u64() % limit);
  };
  for (size_t i = 1 + below(4); i > 0; --i) {
    const size_t at = below(text.size() + 1);
    const size_t length = below(std::min<size_t>(text.size() - at, 30) + 1);
    const std::string& other = others[below(others.size())];
    switch (below(4)) {
      case 0:
        text.erase(at, length);
        break;
      case 1:
        text.insert(at, text.substr(at, length));
        break;
      case 2:
        text.insert(at, other.substr(below(other.size()), below(60)));
        break;
      default:
        if (at < text.size()) text[at] = static_cast<char>(rng.next_u64());
    }
  }
  return text;
}

// Number of damaged inputs that `use` took without an Error.
int count_accepted(const std::string& name, int rounds,
                   const std::function<void(const std::string&)>& use) {
  const std::vector<std::string> files = seeds(name);
  EXPECT_FALSE(files.empty());
  Rng rng(11);
  int accepted = 0;
  for (int round = 0; round < rounds; ++round) {
    const std::string text = damaged(files[static_cast<size_t>(round) % files.size()], files, rng);
    try {
      use(text);
      ++accepted;
    } catch (const Error&) {
    }
  }
  return accepted;
}

TEST(MutatedInput, TokenizerJson) {
  const int accepted = count_accepted("tokenizer_json", 3000, [](const std::string& json) {
    const TokenizerSpec spec = parse_tokenizer_json(json);
    const Tokenizer tokenizer(spec);
    const Tokenizer copy(parse_tokenizer_json(write_tokenizer_json(spec)));
    const std::string text = "ab  the 12\n caf\xC3\xA9 e\xCC\x81<|end|>\xE2\x96\x81<s>\xFF";
    const auto ids = tokenizer.encode(text, true);
    EXPECT_EQ(copy.encode(text, true), ids) << json;
    EXPECT_TRUE(is_valid_utf8(tokenizer.decode(ids, false))) << json;
  });
  EXPECT_GT(accepted, 100);  // the damage is small enough to get past the parser
}

TEST(MutatedInput, ChatTemplates) {
  const Json variables = read_json_file(golden_path("text/jinja.json"))["variables"];
  const int accepted = count_accepted("jinja", 6000, [&](const std::string& source) {
    const JinjaLimits limits{.max_steps = 100'000, .max_bytes = 8 << 20};
    EXPECT_TRUE(is_valid_utf8(JinjaTemplate(source).render(variables, limits, 0))) << source;
  });
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace lathe
