#include "grammar/tool_calls.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/json.h"

namespace lathe {
namespace {

constexpr std::string_view kOpening = "<tool_call>";
constexpr std::string_view kClosing = "</tool_call>";
// Of one call's name and of what stands in front of its arguments: longer is no call.
constexpr std::size_t kMaxHeadBytes = 4096;

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// Bytes at the end of `text` with which `mark` could begin.
std::size_t held_back(std::string_view text, std::string_view mark) {
  std::size_t length = std::min(text.size(), mark.size() - 1);
  while (length > 0 && !mark.starts_with(text.substr(text.size() - length))) --length;
  return length;
}

std::string json_string(const std::string& text) {
  try {
    const Json json = parse_json(text, "name");
    return json.is_string() ? json.get<std::string>() : "";
  } catch (const Error&) {
    return "";
  }
}

}  // namespace

std::optional<ToolFamily> tool_family(std::string_view chat_template) {
  const auto has = [&](std::string_view text) {
    return chat_template.find(text) != std::string_view::npos;
  };
  if (!has("tools")) return std::nullopt;
  if (has("<tool_call>") && has("arguments")) return ToolFamily::kHermes;
  if (has("<|start_header_id|>") && has("\"parameters\"")) return ToolFamily::kLlama3;
  return std::nullopt;
}

// ---- one call

void ToolCallReader::Object::feed(char c) {
  switch (state_) {
    case State::kOpen:
      if (c == '{') {
        state_ = State::kKey;
      } else if (!is_blank(c)) {
        state_ = State::kBroken;
      }
      return;
    case State::kKey:
      if (c == '"') {
        key_.clear();
        state_ = State::kInKey;
      } else if (c == '}') {
        state_ = State::kDone;
      } else if (!is_blank(c) && c != ',') {
        state_ = State::kBroken;
      }
      return;
    case State::kInKey:
      if (c == '"' && !escaped_) {
        state_ = State::kColon;
        return;
      }
      escaped_ = c == '\\' && !escaped_;
      key_ += c;
      if (key_.size() > kMaxHeadBytes) state_ = State::kBroken;
      return;
    case State::kColon:
      if (c == ':') {
        state_ = State::kValue;
      } else if (!is_blank(c)) {
        state_ = State::kBroken;
      }
      return;
    case State::kValue:
      if (is_blank(c)) return;
      value_.clear();
      depth_ = 0;
      in_string_ = escaped_ = false;
      is_scalar_ = c != '"' && c != '{' && c != '[';
      state_ = State::kInValue;
      [[fallthrough]];
    case State::kInValue: {
      if (is_scalar_ && (c == ',' || c == '}')) {
        end_value();
        feed(c);
        return;
      }
      const bool is_arguments = key_ == "arguments" || key_ == "parameters";
      if (is_arguments) {
        has_arguments_ = true;
        arguments_ += c;
      } else if (key_ == "name") {
        value_ += c;
        if (value_.size() > kMaxHeadBytes) state_ = State::kBroken;
      }
      if (in_string_) {
        if (c == '"' && !escaped_) {
          in_string_ = false;
          if (depth_ == 0) end_value();
        }
        escaped_ = c == '\\' && !escaped_;
      } else if (c == '"') {
        in_string_ = true;
        escaped_ = false;
      } else if (c == '{' || c == '[') {
        ++depth_;
      } else if (c == '}' || c == ']') {
        if (--depth_ == 0) end_value();
      }
      return;
    }
    case State::kDone:
    case State::kBroken:
      return;
  }
}

void ToolCallReader::Object::end_value() {
  if (state_ == State::kBroken) return;
  if (key_ == "name") name_ = json_string(value_);
  escaped_ = false;
  state_ = State::kKey;
}

std::string ToolCallReader::Object::take_arguments() { return std::exchange(arguments_, {}); }

// ---- the text

ToolCallReader::ToolCallReader(ToolFamily family, std::vector<std::string> tool_names)
    : family_(family),
      tool_names_(std::move(tool_names)),
      place_(family == ToolFamily::kHermes ? Place::kText : Place::kBeforeCall) {}

ToolCallReader::News ToolCallReader::push(std::string_view text, bool is_last) {
  News news;
  pending_ += text;
  while (advance(news, is_last)) {
  }
  if (is_last) {
    add_content(news, pending_);
    pending_.clear();
    // Blanks at the end of a text without calls are the text's.
    if (num_calls_ == 0) news.content += blanks_;
    blanks_.clear();
  }
  return news;
}

void ToolCallReader::add_content(News& news, std::string_view text) {
  if (text.empty()) return;
  // Blanks in front of a call belong to the way it is written.
  std::size_t end = text.size();
  while (end > 0 && is_blank(text[end - 1])) --end;
  if (end > 0) {
    if (has_content_ || num_calls_ == 0) news.content += blanks_;
    blanks_.clear();
    std::string_view visible = text.substr(0, end);
    if (!has_content_ && num_calls_ > 0) {
      while (is_blank(visible.front())) visible.remove_prefix(1);
    }
    news.content += visible;
    has_content_ = true;
  }
  blanks_ += text.substr(end);
}

// One step; false when more text is needed.
bool ToolCallReader::advance(News& news, bool is_last) {
  switch (place_) {
    case Place::kText:
      return read_text(news, is_last);
    case Place::kBeforeCall: {  // Llama 3: the answer, or what stands behind a call
      std::size_t begin = 0;
      while (begin < pending_.size() && (is_blank(pending_[begin]) || pending_[begin] == ';')) {
        ++begin;
      }
      if (begin == pending_.size()) return false;
      if (pending_[begin] != '{') {
        place_ = Place::kText;
        return true;
      }
      blanks_ += pending_.substr(0, begin);
      pending_.erase(0, begin);
      place_ = Place::kCall;
      object_ = Object();
      announced_ = false;
      call_text_.clear();
      return true;
    }
    case Place::kCall:
      return read_call(news, is_last);
    case Place::kBehindCall: {  // Hermes: the closing mark
      std::size_t begin = 0;
      while (begin < pending_.size() && is_blank(pending_[begin])) ++begin;
      const std::string_view rest = std::string_view(pending_).substr(begin);
      if (rest.size() < kClosing.size() && kClosing.starts_with(rest) && !is_last) return false;
      if (rest.starts_with(kClosing)) begin += kClosing.size();
      pending_.erase(0, begin);
      place_ = Place::kText;
      return !pending_.empty();
    }
  }
  return false;
}

bool ToolCallReader::read_text(News& news, bool is_last) {
  if (pending_.empty()) return false;
  const bool may_call = family_ == ToolFamily::kHermes;
  const std::size_t found = may_call ? pending_.find(kOpening) : std::string::npos;
  if (found == std::string::npos) {
    const std::size_t held = may_call && !is_last ? held_back(pending_, kOpening) : 0;
    add_content(news, std::string_view(pending_).substr(0, pending_.size() - held));
    pending_.erase(0, pending_.size() - held);
    return false;
  }
  add_content(news, std::string_view(pending_).substr(0, found));
  pending_.erase(0, found + kOpening.size());
  place_ = Place::kCall;
  object_ = Object();
  announced_ = false;
  call_text_ = kOpening;
  return true;
}

bool ToolCallReader::read_call(News& news, bool is_last) {
  using State = Object::State;
  std::size_t pos = 0;
  const auto in_progress = [&] {
    return object_.state() != State::kDone && object_.state() != State::kBroken;
  };
  const auto is_known = [&] {
    return std::find(tool_names_.begin(), tool_names_.end(), object_.name()) != tool_names_.end();
  };
  while (pos < pending_.size() && in_progress()) {
    if (!announced_) call_text_ += pending_[pos];
    object_.feed(pending_[pos++]);
    // A call once it has a name and arguments; only then are its pieces given away.
    if (!announced_ && object_.has_arguments() && !object_.name().empty() &&
        (family_ == ToolFamily::kHermes || is_known())) {
      announced_ = true;
      blanks_.clear();
      call_text_.clear();
      news.calls.push_back({num_calls_++, object_.name(), ""});
    }
    const bool too_long = !announced_ && call_text_.size() > 4 * kMaxHeadBytes;
    if (!announced_ && (too_long || (family_ == ToolFamily::kLlama3 && object_.has_arguments()))) {
      break;  // no tool of that name: text
    }
  }
  pending_.erase(0, pos);
  if (announced_) {
    std::string arguments = object_.take_arguments();
    if (!arguments.empty()) {
      if (!news.calls.empty() && news.calls.back().index == num_calls_ - 1) {
        news.calls.back().arguments += arguments;
      } else {
        news.calls.push_back({num_calls_ - 1, "", std::move(arguments)});
      }
    }
    if (in_progress()) return false;
    place_ = family_ == ToolFamily::kHermes ? Place::kBehindCall : Place::kBeforeCall;
    return !pending_.empty();
  }
  if (in_progress() && pending_.empty() && !is_last) return false;
  // Not a call after all, or cut off before it had a name.
  add_content(news, call_text_);
  call_text_.clear();
  place_ = Place::kText;
  return true;
}

}  // namespace lathe
