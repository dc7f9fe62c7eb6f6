#include "compress/calibration_data.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>

#include "base/error.h"
#include "comm/thread_ranks.h"
#include "compress/default_calibration.h"
#include "compress/hidden_store.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

std::vector<int32_t> counting(int32_t first, int64_t count) {
  std::vector<int32_t> stream(static_cast<std::size_t>(count));
  std::iota(stream.begin(), stream.end(), first);
  return stream;
}

TEST(CalibrationData, CropsAreRunsOfOneStreamAndRepeatable) {
  const std::vector<std::vector<int32_t>> streams = {counting(0, 50), counting(1000, 3),
                                                     counting(2000, 500)};
  const auto crops = crop_sequences(streams, 200, 16, -1, 1);
  ASSERT_EQ(crops.size(), 200u);
  int from_first = 0;
  for (const auto& crop : crops) {
    ASSERT_EQ(crop.size(), 16u);
    for (std::size_t i = 1; i < 16; ++i) EXPECT_EQ(crop[i], crop[0] + static_cast<int32_t>(i));
    from_first += crop[0] < 1000;
    EXPECT_FALSE(crop[0] >= 1000 && crop[0] < 2000);  // too short to give one
  }
  // 35 of 520 starts are in the first stream.
  EXPECT_GT(from_first, 3);
  EXPECT_LT(from_first, 40);
  EXPECT_EQ(crop_sequences(streams, 200, 16, -1, 1), crops);
  EXPECT_NE(crop_sequences(streams, 200, 16, -1, 2), crops);
}

TEST(CalibrationData, BosTakesOnePlace) {
  const auto crops = crop_sequences({counting(0, 15)}, 3, 16, 77, 1);
  for (const auto& crop : crops) {
    ASSERT_EQ(crop.size(), 16u);
    EXPECT_EQ(crop[0], 77);
    EXPECT_EQ(crop[1], 0);
  }
  EXPECT_THROW(crop_sequences({counting(0, 15)}, 3, 16, -1, 1), Error);
  EXPECT_THROW(crop_sequences({}, 3, 16, -1, 1), Error);
}

TEST(CalibrationData, ReadsTextAndJsonLines) {
  TemporaryDirectory directory;
  EXPECT_EQ(read_calibration_text(directory.write("a.txt", "plain {text}\n")), "plain {text}\n");
  EXPECT_EQ(
      read_calibration_text(directory.write(
          "b.jsonl", "{\"text\": \"one\"}\n\n{\"question\": \"two\", \"answer\": \"three\"}")),
      "one\n\ntwo\nthree\n\n");
  for (const char* bad : {"{\"text\": 1}\n", "[]\n", "{\"text\": \"x\"}\n{broken\n"}) {
    try {
      read_calibration_text(directory.write("c.jsonl", bad));
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptData) << error.what();
    }
  }
  EXPECT_THROW(read_calibration_text(directory / "missing.txt"), Error);
}

TEST(CalibrationData, DefaultTextIsWholeAndText) {
  const std::string_view text = default_calibration_text();
  EXPECT_GT(text.size(), 300'000u);
  EXPECT_LT(text.size(), 500'000u);
  EXPECT_EQ(text.find('\0'), std::string_view::npos);
  EXPECT_EQ(text.back(), '\n');
  EXPECT_NE(text.find("```rust"), std::string_view::npos);
  EXPECT_NE(text.find("####"), std::string_view::npos);
}

TEST(HiddenStore, KeepsTwoGenerationsApart) {
  TemporaryDirectory directory;
  std::vector<float> first(5 * 4, 1.0f), second(5 * 4, 2.0f), out(5 * 4);
  {
    HiddenStore store(directory.path(), {2, 3}, 4);
    EXPECT_FALSE(store.complete(0));
    store.begin(0);
    store.write(0, 0, 2, first.data());
    EXPECT_FALSE(store.complete(0));
    store.finish(0);
    store.begin(1);
    store.write(1, 0, 1, second.data());
    store.write(1, 1, 1, second.data());
    EXPECT_TRUE(store.complete(0));
    EXPECT_FALSE(store.complete(1));
    store.finish(1);
  }
  HiddenStore store(directory.path(), {2, 3}, 4);
  EXPECT_TRUE(store.complete(0));
  EXPECT_TRUE(store.complete(1));
  store.read(0, 0, 2, out.data());
  EXPECT_EQ(out, first);
  store.read(1, 0, 2, out.data());
  EXPECT_EQ(out, second);
  // The file of layer 1 is also that of layer 3, but these are not its inputs.
  EXPECT_FALSE(store.complete(3));
  store.begin(2);
  EXPECT_FALSE(store.complete(0));
  HiddenStore longer(directory.path(), {2, 4}, 4);
  EXPECT_FALSE(longer.complete(1));
  std::vector<float> more(6 * 4);
  EXPECT_THROW(longer.read(1, 0, 2, more.data()), Error);
  store.remove();
  EXPECT_FALSE(std::filesystem::exists(directory / "calibration.0"));
}

TEST(HiddenStore, RanksWriteTheirSharesOfTheSameFiles) {
  TemporaryDirectory directory;
  const std::vector<int64_t> lengths = {2, 3, 1, 4, 2};
  std::vector<float> values(12 * 4);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  ThreadRanks(2).run([&](Communicator& ranks) {
    HiddenStore store(directory.path(), lengths, 4, &ranks);
    EXPECT_FALSE(store.complete(0));
    ranks.barrier();
    store.begin(0);
    for (int64_t i = 0; i < store.num_sequences(); ++i) {
      EXPECT_EQ(store.owns(i), i % 2 == ranks.rank());
      if (store.owns(i)) store.write(0, i, 1, values.data() + store.tokens_before(i) * 4);
    }
    store.finish(0);
    ranks.barrier();
    EXPECT_TRUE(store.complete(0));
  });
  // Any number of ranks goes on.
  const HiddenStore store(directory.path(), lengths, 4);
  EXPECT_TRUE(store.complete(0));
  std::vector<float> out(12 * 4);
  store.read(0, 0, 5, out.data());
  EXPECT_EQ(out, values);
}

TEST(HiddenStore, ARankThatSeesOtherFilesSaysSo) {
  TemporaryDirectory first, second;
  { const HiddenStore of_an_earlier_run(second.path(), {2, 3}, 4); }
  ThreadRanks(2).run([&](Communicator& ranks) {
    const std::string directory = ranks.rank() == 0 ? first.path() : second.path();
    if (ranks.rank() == 0) {
      EXPECT_NO_THROW(HiddenStore(directory, {2, 3}, 4, &ranks));
    } else {
      EXPECT_THROW(HiddenStore(directory, {2, 3}, 4, &ranks), Error);
    }
  });
}

}  // namespace
}  // namespace lathe
