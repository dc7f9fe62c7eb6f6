// Tool calls as the families of models write them, read from their text as it comes.
//
//   Hermes (Qwen2.5, Qwen3, Hermes 2):   text <tool_call>\n{"name": "f", "arguments":
//   {...}}\n</tool_call> ... Llama 3:                             {"name": "f", "parameters":
//   {...}}   and nothing else
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

enum class ToolFamily { kHermes, kLlama3 };

// By what the chat template tells the model to write; nullopt: it knows no tools, or writes calls
// in another way.
std::optional<ToolFamily> tool_family(std::string_view chat_template);

// News of one call. The first of each call has the name; the arguments come in pieces of their JSON
// text, as the model wrote it.
struct ToolCallPiece {
  int64_t index = 0;
  std::string name;  // empty but in the first
  std::string arguments;
};

// One answer's text, cut anywhere, becomes content and calls. What begins like a call and is none
// is content; a call that the text cuts off has as much as was there. Never throws for what the
// text holds.
class ToolCallReader {
 public:
  // tool_names: Llama 3's calls are known by them.
  ToolCallReader(ToolFamily family, std::vector<std::string> tool_names);

  struct News {
    std::string content;
    std::vector<ToolCallPiece> calls;
  };
  // is_last: the text ends here; what was held back comes out.
  News push(std::string_view text, bool is_last);
  bool has_calls() const { return num_calls_ > 0; }

 private:
  // Reads {"name": ..., "arguments": ...} character by character.
  class Object {
   public:
    enum class State { kOpen, kKey, kInKey, kColon, kValue, kInValue, kDone, kBroken };
    void feed(char c);
    State state() const { return state_; }
    const std::string& name() const { return name_; }
    // Pieces of the arguments that were not taken yet.
    std::string take_arguments();
    bool has_arguments() const { return has_arguments_; }

   private:
    void end_value();
    State state_ = State::kOpen;
    std::string key_, value_, name_, arguments_;
    bool has_arguments_ = false;
    int depth_ = 0;
    bool in_string_ = false, escaped_ = false, is_scalar_ = false;
  };

  enum class Place { kText, kBeforeCall, kCall, kBehindCall };

  bool advance(News& news, bool is_last);
  bool read_text(News& news, bool is_last);
  bool read_call(News& news, bool is_last);
  void add_content(News& news, std::string_view text);
  std::string_view opening() const;

  ToolFamily family_;
  std::vector<std::string> tool_names_;
  Place place_;
  std::string pending_;    // not yet understood
  std::string call_text_;  // of the call in progress, while it may still turn out to be content
  std::string blanks_;     // content that is left out when a call follows
  Object object_;
  bool announced_ = false;  // the call in progress has its index
  bool has_content_ = false;
  int64_t num_calls_ = 0;
};

}  // namespace lathe
