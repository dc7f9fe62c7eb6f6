// The text that models are calibrated on when none is named: some 350 kB of prose, technical prose
// with code, and worked arithmetic, 90,000 tokens or so. Better: text like what the model will
// read.
//
// default_calibration.txt is made of excerpts, four rounds of:
//   Jane Austen, Pride and Prejudice; William Morris, News from Nowhere   public domain in the USA,
//                                                   from the Project Gutenberg texts 1342 and 3261
//   The Rust Programming Language (rust-lang/book, 9175448)               MIT or Apache-2.0
//   GSM8K, training split (openai/grade-school-math, 3101c7d)             MIT, (c) 2021 OpenAI
#pragma once
#include <string_view>

namespace lathe {

// Lives as long as the program.
std::string_view default_calibration_text();

}  // namespace lathe
