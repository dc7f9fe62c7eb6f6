#include "compress/calibration_data.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/rng.h"

namespace lathe {

std::string read_calibration_text(const std::string& path) {
  const std::string content = read_file(path);
  if (!path.ends_with(".jsonl")) return content;
  std::string text;
  int64_t number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    std::size_t end = content.find('\n', begin);
    if (end == std::string::npos) end = content.size();
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string what = str(path, " line ", number);
    const Json entry = parse_json(line, what);
    const auto field = [&](const char* key) -> std::string {
      const auto place = entry.is_object() ? entry.find(key) : entry.end();
      return place != entry.end() && place->is_string() ? place->get<std::string>() : "";
    };
    std::string document = field("text");
    if (document.empty()) {
      document = field("question");
      const std::string answer = field("answer");
      if (!answer.empty()) document += "\n" + answer;
    }
    if (document.empty()) {
      fail(ErrorCode::kCorruptData, what, " has neither \"text\" nor \"question\"");
    }
    text += document;
    text += "\n\n";
  }
  return text;
}

std::vector<std::vector<int32_t>> crop_sequences(const std::vector<std::vector<int32_t>>& streams,
                                                 int64_t samples, int64_t seq_len, int32_t bos_id,
                                                 uint64_t seed) {
  const int64_t length = bos_id >= 0 ? seq_len - 1 : seq_len;
  // Possible starts, counted through all streams that are long enough.
  int64_t num_starts = 0;
  int64_t longest = 0;
  for (const auto& stream : streams) {
    const auto tokens = static_cast<int64_t>(stream.size());
    longest = std::max(longest, tokens);
    num_starts += std::max<int64_t>(tokens - length + 1, 0);
  }
  if (num_starts == 0 || length < 1) {
    fail(ErrorCode::kInvalidArgument, "the longest calibration text has ", longest,
         " tokens, a sample needs ", length, "; add text or lower --seq-len");
  }
  Rng rng(seed);
  std::vector<std::vector<int32_t>> sequences;
  for (int64_t i = 0; i < samples; ++i) {
    auto start = static_cast<int64_t>(rng.below(static_cast<uint64_t>(num_starts)));
    for (const auto& stream : streams) {
      const int64_t here = std::max<int64_t>(static_cast<int64_t>(stream.size()) - length + 1, 0);
      if (start >= here) {
        start -= here;
        continue;
      }
      std::vector<int32_t> sequence;
      sequence.reserve(static_cast<std::size_t>(seq_len));
      if (bos_id >= 0) sequence.push_back(bos_id);
      for (int64_t t = start; t < start + length; ++t) {
        sequence.push_back(stream[static_cast<std::size_t>(t)]);
      }
      sequences.push_back(std::move(sequence));
      break;
    }
  }
  return sequences;
}

std::vector<std::vector<int32_t>> calibration_sequences(const Tokenizer& tokenizer,
                                                        const std::vector<std::string>& texts,
                                                        int64_t samples, int64_t seq_len,
                                                        uint64_t seed) {
  std::vector<std::vector<int32_t>> streams;
  for (const std::string& text : texts) {
    streams.push_back(tokenizer.encode(text, /*parse_special=*/false));
  }
  const int32_t bos = tokenizer.add_bos() ? tokenizer.bos_id().value_or(-1) : -1;
  return crop_sequences(streams, samples, seq_len, bos, seed);
}

}  // namespace lathe
