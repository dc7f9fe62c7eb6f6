// Codes of keys that have large biases: they are kept without them (attention.h, KeyOffset).
#include <gtest/gtest.h>

#include "compress/random_model.h"

namespace lathe {
namespace {

// What codes of its keys and values change a random model's logits by.
double cost(KvFormat format, double key_bias_stddev) {
  const TemporaryDirectory temporary;
  write_random_model(temporary.path(), kQwen2Config, 7, key_bias_stddev);
  OwnedExec owned(2);
  const auto ids = random_sequences(1, 150, 101, 4).front();
  const auto exact = logits_of(temporary.path(), ids, owned.exec);
  return relative_distance(logits_of(temporary.path(), ids, owned.exec, format), exact);
}

// Biases of a hundred times what tells keys apart, as Qwen2.5 has them: with them in the codes
// nothing of the keys would be left.
TEST(KeyOffset, BiasesOfKeysDoNotCountInTheirCodes) {
  EXPECT_EQ(cost(KvFormat::kF32, 30), 0);
  // About twice what it is (the biases make peaked weights, which codes of the values cost more
  // than they cost a model without); with the biases in the codes it is 0.40, 0.054, 0.75, 0.91.
  const std::pair<KvFormat, double> limits[] = {{KvFormat::kFp8, 0.05},
                                                {KvFormat::kInt8, 0.004},
                                                {KvFormat::kQ4, 0.2},
                                                {KvFormat::kHiggs4, 0.25}};
  for (const auto& [format, limit] : limits) {
    const double large = cost(format, 30);
    EXPECT_GT(large, 0) << kv_format_name(format);
    EXPECT_LT(large, limit) << kv_format_name(format);
  }
}

}  // namespace
}  // namespace lathe
