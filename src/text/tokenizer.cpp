#include "text/tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/unicode.h"

namespace lathe {
namespace {

// "<0x41>" -> 0x41; -1 for every other text.
int byte_of_token(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  };
  const int high = digit(text[3]);
  const int low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : high << 4 | low;
}

void replace_in(std::string& text, std::string_view from, std::string_view to) {
  for (size_t pos = 0; (pos = text.find(from, pos)) != std::string::npos; pos += to.size()) {
    text.replace(pos, from.size(), to);
  }
}

// Control tokens that end a turn, whatever the configuration says: many files name only the one
// that ends a document, and a chat would run on into the next turn.
constexpr std::string_view kEndTexts[] = {
    "<|im_end|>",      "<|eot_id|>",    "<|eom_id|>", "<|end|>",    "<|endoftext|>",
    "<|end_of_text|>", "<end_of_turn>", "</s>",       "<|return|>", "<|call|>"};

void check_spec(const TokenizerSpec& spec) {
  const auto num_tokens = static_cast<int64_t>(spec.tokens.size());
  const auto check_id = [&](int64_t id, std::string_view what) {
    if (id < 0 || id >= num_tokens) {
      fail(ErrorCode::kCorruptData, what, " has id ", id, ", but the vocabulary has ", num_tokens,
           " tokens");
    }
  };
  if (spec.in_model.size() != spec.tokens.size()) {
    fail(ErrorCode::kCorruptData, "vocabulary of ", num_tokens, " tokens with ",
         spec.in_model.size(), " token kinds");
  }
  for (const auto& token : spec.added_tokens) check_id(token.id, "added token");
  for (const auto& merge : spec.merges) {
    check_id(merge.left, "a merge");
    check_id(merge.right, "a merge");
    check_id(merge.result, "a merge");
  }
  if (spec.unknown_id) check_id(*spec.unknown_id, "the unknown token");
  if (spec.bos_id) check_id(*spec.bos_id, "the BOS token");
  if (spec.eos_id) check_id(*spec.eos_id, "the EOS token");
  for (const int32_t id : spec.end_ids) check_id(id, "an end token");
}

}  // namespace

struct Tokenizer::Impl {
  TokenizerSpec spec;  // without merges, which bpe holds
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  AddedTokenMatcher raw_matcher;         // tokens that are looked for before normalisation
  AddedTokenMatcher normalized_matcher;  // and after
  std::unordered_map<std::string_view, int32_t> added_ids;
  std::vector<bool> is_special;
  std::vector<bool> is_byte;       // <0xXX> of byte fallback
  std::vector<std::string> bytes;  // by id: what the token stands for
  std::unique_ptr<Bpe> bpe;

  explicit Impl(TokenizerSpec given) : spec(std::move(given)) {
    check_spec(spec);
    normalizer = Normalizer(spec.normalizer);
    pre_tokenizer = PreTokenizer(spec.pre_tokenizer);
    build_matchers();
    build_bytes();
    std::vector<std::string_view> model_texts(spec.tokens.begin(), spec.tokens.end());
    if (spec.byte_level) {
      std::string raw;
      for (size_t id = 0; id < model_texts.size(); ++id) {
        // A text outside the byte alphabet cannot come out of the merges.
        if (spec.in_model[id] && !byte_level_to_bytes(model_texts[id], raw))
          spec.in_model[id] = false;
        model_texts[id] = bytes[id];
      }
    }
    bpe = std::make_unique<Bpe>(spec, model_texts);
    spec.merges = {};
  }

  void build_matchers() {
    is_special.assign(spec.tokens.size(), false);
    std::vector<AddedToken> raw, normalized;
    std::vector<std::string> raw_texts, normalized_texts;
    for (const AddedToken& token : spec.added_tokens) {
      spec.tokens[token.id] = token.content;
      is_special[token.id] = token.special;
      (token.normalized ? normalized : raw).push_back(token);
      if (token.normalized) {
        normalized_texts.push_back(normalizer.apply(to_valid_utf8(token.content)));
      } else {
        raw_texts.push_back(token.content);
      }
    }
    for (const AddedToken& token : spec.added_tokens) added_ids[token.content] = token.id;
    for (const AddedToken& token : spec.added_tokens) {
      const bool ends = token.special && std::find(std::begin(kEndTexts), std::end(kEndTexts),
                                                   token.content) != std::end(kEndTexts);
      const bool known =
          std::find(spec.end_ids.begin(), spec.end_ids.end(), token.id) != spec.end_ids.end();
      if (ends && !known) spec.end_ids.push_back(token.id);
    }
    raw_matcher = AddedTokenMatcher(std::move(raw), raw_texts);
    normalized_matcher = AddedTokenMatcher(std::move(normalized), normalized_texts);
  }

  void build_bytes() {
    bytes.resize(spec.tokens.size());
    is_byte.assign(spec.tokens.size(), false);
    for (size_t id = 0; id < spec.tokens.size(); ++id) {
      std::string text = spec.tokens[id];
      if (spec.decoder.byte_level) {
        std::string raw;
        bytes[id] = byte_level_to_bytes(text, raw) ? std::move(raw) : std::move(text);
        continue;
      }
      if (spec.decoder.byte_fallback) {
        if (const int byte = byte_of_token(text); byte >= 0) {
          is_byte[id] = true;
          bytes[id] = std::string(1, static_cast<char>(byte));
          continue;
        }
      }
      for (const auto& step : spec.decoder.replacements) {
        if (!step.pattern.empty()) replace_in(text, step.pattern, step.content);
      }
      if (!spec.decoder.metaspace.empty()) replace_in(text, spec.decoder.metaspace, " ");
      bytes[id] = std::move(text);
    }
  }

  void check_id(int32_t id) const {
    if (id < 0 || id >= std::ssize(bytes)) {
      fail(ErrorCode::kInvalidArgument, "token id ", id, " is outside the vocabulary of ",
           bytes.size(), " tokens");
    }
  }
};

Tokenizer::Tokenizer(TokenizerSpec spec) : impl_(std::make_unique<const Impl>(std::move(spec))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = to_valid_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  Bpe::Workspace work;
  const auto encode_piece = [&](std::string_view piece) { impl_->bpe->encode(piece, work, ids); };

  bool at_start = true;
  for (const auto& raw : impl_->raw_matcher.split(text, parse_special)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      at_start = false;
      continue;
    }
    std::string normalized;
    std::string_view plain = raw.text;
    if (!impl_->normalizer.empty()) {
      bool lost_start = false;
      normalized = impl_->normalizer.apply(plain, &lost_start);
      at_start = at_start && !lost_start;
      plain = normalized;
    }
    for (const auto& segment : impl_->normalized_matcher.split(plain, parse_special)) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
      } else {
        impl_->pre_tokenizer.split(segment.text, at_start, encode_piece);
      }
      at_start = false;
    }
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  const DecoderSpec& decoder = impl_->spec.decoder;
  std::string out;
  std::string pending;  // bytes of byte-fallback tokens in a row: valid together, or all replaced
  const auto flush = [&] {
    if (is_valid_utf8(pending)) {
      out += pending;
    } else {
      for (size_t i = 0; i < pending.size(); ++i) out += kReplacementCharacter;
    }
    pending.clear();
  };
  bool first = true;
  for (const int32_t id : ids) {
    impl_->check_id(id);
    if (skip_special && impl_->is_special[id]) continue;
    if (impl_->is_byte[id]) {
      pending += impl_->bytes[id];
      first = false;
      continue;
    }
    flush();
    if (first && decoder.metaspace_drops_first) {
      std::string text = impl_->spec.tokens[id];
      replace_in(text, decoder.metaspace, "");
      out += text;
    } else {
      out += impl_->bytes[id];
    }
    first = false;
  }
  flush();
  size_t strip = 0;
  while (static_cast<int64_t>(strip) < decoder.strip_at_start && strip < out.size() &&
         out[strip] == decoder.strip_character) {
    ++strip;
  }
  out.erase(0, strip);
  return is_valid_utf8(out) ? out : to_valid_utf8(out);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  impl_->check_id(id);
  return impl_->bytes[id];
}

bool Tokenizer::strips_leading_space() const {
  const DecoderSpec& decoder = impl_->spec.decoder;
  return decoder.metaspace_drops_first ||
         (decoder.strip_at_start > 0 && decoder.strip_character == ' ');
}

std::optional<int32_t> Tokenizer::find_token(std::string_view text) const {
  const auto added = impl_->added_ids.find(text);
  if (added != impl_->added_ids.end()) return added->second;
  const int32_t id = impl_->bpe->find(text);
  return id >= 0 ? std::optional(id) : std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const {
  impl_->check_id(id);
  return impl_->is_special[id];
}

int64_t Tokenizer::vocab_size() const { return std::ssize(impl_->bytes); }
std::optional<int32_t> Tokenizer::bos_id() const { return impl_->spec.bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->spec.eos_id; }
std::span<const int32_t> Tokenizer::end_ids() const { return impl_->spec.end_ids; }
bool Tokenizer::add_bos() const { return impl_->spec.add_bos; }

}  // namespace lathe
