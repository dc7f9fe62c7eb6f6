#include "text/tokenizer_document.h"

#include <limits>

#include "base/error.h"
#include "base/json.h"

namespace lathe {
namespace {

using Node = TokenizerDocument::Node;

constexpr size_t kMaxDepth = 32;

[[noreturn]] void corrupt(const std::string& what) {
  fail(ErrorCode::kCorruptData, "tokenizer.json: ", what);
}

// nlohmann calls one method per token of the text, in order.
class Reader final : public nlohmann::json_sax<Node> {
 public:
  TokenizerDocument document;

  bool null() override { return scalar(nullptr); }
  bool boolean(bool value) override { return scalar(value); }
  bool number_float(double value, const std::string&) override { return scalar(value); }
  bool number_integer(int64_t value) override { return number(value, value); }
  bool number_unsigned(uint64_t value) override {
    constexpr auto kMax = std::numeric_limits<int64_t>::max();
    return number(value, value > uint64_t{kMax} ? kMax : static_cast<int64_t>(value));
  }
  bool string(std::string& value) override {
    if (place_ == Place::kMerges) {
      split_merge(value);
      return true;
    }
    if (place_ == Place::kMerge) {
      ++merge_length_;
      auto& merge = document.merges->back();
      (merge_length_ == 1 ? merge.first : merge.second) = std::move(value);
      return true;
    }
    return scalar(std::move(value));
  }
  bool binary(Node::binary_t&) override { return false; }

  bool start_object(size_t) override {
    if (place_ != Place::kTree) corrupt("an object inside vocabulary or merges");
    if (at_model_member("vocab")) {
      place_ = Place::kVocab;
      document.vocab.emplace();
      return true;
    }
    open(Node::object());
    return true;
  }
  bool key(std::string& name) override {
    key_ = std::move(name);
    return true;
  }
  bool end_object() override {
    place_ == Place::kVocab ? void(place_ = Place::kTree) : stack_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    if (place_ == Place::kMerges) {
      place_ = Place::kMerge;
      merge_length_ = 0;
      document.merges->emplace_back();
      return true;
    }
    if (place_ != Place::kTree) corrupt("a list inside vocabulary or merge");
    if (at_model_member("merges")) {
      place_ = Place::kMerges;
      document.merges.emplace();
      return true;
    }
    open(Node::array());
    return true;
  }
  bool end_array() override {
    if (place_ == Place::kMerge) {
      if (merge_length_ != 2) bad_merge();
      place_ = Place::kMerges;
    } else if (place_ == Place::kMerges) {
      place_ = Place::kTree;
    } else {
      stack_.pop_back();
    }
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    corrupt("not valid JSON: " + std::string(error.what()).substr(0, 200));
  }

 private:
  enum class Place { kTree, kVocab, kMerges, kMerge };

  // Directly in the object that is the member "model" of the top.
  bool at_model_member(std::string_view name) const {
    return stack_.size() == 2 && key_ == name && stack_[0]->is_object() && stack_[1]->is_object() &&
           in_model_;
  }

  Node* add(Node value) {
    if (stack_.empty()) {
      *document.root = std::move(value);
      return document.root.get();
    }
    Node& parent = *stack_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }

  void open(Node container) {
    if (stack_.size() >= kMaxDepth) corrupt("nested deeper than " + std::to_string(kMaxDepth));
    if (stack_.size() == 1) in_model_ = stack_[0]->is_object() && key_ == "model";
    stack_.push_back(add(std::move(container)));
  }

  bool scalar(Node value) {
    if (place_ == Place::kVocab) corrupt("model.vocab: a token id is not an integer");
    if (place_ != Place::kTree) bad_merge();
    add(std::move(value));
    return true;
  }

  bool number(Node value, int64_t integer) {
    if (place_ == Place::kVocab) {
      document.vocab->emplace_back(std::move(key_), integer);
      return true;
    }
    return scalar(std::move(value));
  }

  [[noreturn]] void bad_merge() const {
    corrupt("model.merges[" + std::to_string(document.merges->size()) + "] is not two tokens");
  }

  // The older form: both tokens in one string, with a space between.
  void split_merge(const std::string& text) {
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) bad_merge();
    document.merges->emplace_back(text.substr(0, space), text.substr(space + 1));
  }

  // Pointers into the tree: a container is only appended to while it is the last on the stack, so
  // those below it do not move.
  std::vector<Node*> stack_;
  std::string key_;
  Place place_ = Place::kTree;
  bool in_model_ = false;
  int merge_length_ = 0;
};

}  // namespace

TokenizerDocument::TokenizerDocument() : root(std::make_unique<Node>()) {}
TokenizerDocument::~TokenizerDocument() = default;
TokenizerDocument::TokenizerDocument(TokenizerDocument&&) noexcept = default;

TokenizerDocument read_tokenizer_document(std::string_view json) {
  Reader reader;
  Node::sax_parse(json.begin(), json.end(), &reader);
  return std::move(reader.document);
}

}  // namespace lathe
