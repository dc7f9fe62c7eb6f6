// Calibration text to token sequences: random crops of equal length, the same for the same seed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace lathe {

// Reads one file: plain text or markdown as it is; .jsonl: of every line the value of "text", or
// "question" and "answer" joined by a newline. Throws kNotFound, kCorruptData (line number, key).
std::string read_calibration_text(const std::string& path);

// `samples` crops of seq_len tokens, a file chosen in proportion to its tokens, a start at random;
// BOS in front (and one token less of text) where the tokenizer adds one. Throws kInvalidArgument
// when no file has seq_len tokens.
std::vector<std::vector<int32_t>> calibration_sequences(const Tokenizer& tokenizer,
                                                        const std::vector<std::string>& texts,
                                                        int64_t samples, int64_t seq_len,
                                                        uint64_t seed);

// The same from token streams.
std::vector<std::vector<int32_t>> crop_sequences(const std::vector<std::vector<int32_t>>& streams,
                                                 int64_t samples, int64_t seq_len, int32_t bos_id,
                                                 uint64_t seed);

}  // namespace lathe
