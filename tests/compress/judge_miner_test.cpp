// The batched miner against a serial one written out here, on a tiny model and its 4-bit copy.
#include "compress/judge_miner.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "base/atomic_file.h"
#include "compress/mining_journal.h"
#include "compress/random_model.h"
#include "engine/logits.h"
#include "engine/speculation_cases.h"
#include "formats/expect_error.h"
#include "formats/requantized_checkpoint.h"
#include "formats/temporary_directory.h"

namespace lathe {
namespace {

constexpr int64_t kMaxNew = 40;

EngineOptions mining_options(bool prefix_cache, int64_t max_sequence_tokens) {
  EngineOptions options = small_options();
  options.prefix_cache = prefix_cache;
  options.max_sequence_tokens = max_sequence_tokens;
  return options;
}

// Prompts, a checker without sense, and answers that end at the first of many letters.
MiningTask make_task() {
  MiningTask task;
  for (uint64_t i = 0; i < 14; ++i) {
    task.prompts.push_back(random_prompt(5 + static_cast<int64_t>(i * 3 % 40), 100 + i));
  }
  task.outcome = [](int64_t, const std::string& response) -> Outcome {
    uint64_t hash = 5;
    for (const char c : response) hash = hash * 31 + static_cast<unsigned char>(c);
    if (response.empty()) return std::nullopt;
    return std::string(1, static_cast<char>('0' + hash / 8 % 8 / 7));
  };
  for (const char c : std::string("aeiouAEIOU0123456789!?.,")) task.stop.emplace_back(1, c);
  return task;
}

// Random weights whose text goes on and on: with tied embeddings it would repeat one token.
std::unique_ptr<Checkpoint> talkative_model() {
  const TemporaryDirectory directory;
  write_random_model(directory.path(), R"({"architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128, "hidden_act": "silu", "rope_theta": 10000.0,
    "tie_word_embeddings": false, "torch_dtype": "float32"})",
                     8);
  return Checkpoint::open(directory.path());  // mapped: the files may go
}

// Chooses greedily by itself, as a model on a GPU does.
class ChoosingModel : public Model {
 public:
  explicit ChoosingModel(Model& model) : model_(model) {}
  const ModelConfig& config() const override { return model_.config(); }
  int64_t weight_bytes() const override { return model_.weight_bytes(); }
  std::string kernels() const override { return model_.kernels(); }
  void set_profile(StepProfile* profile) override { model_.set_profile(profile); }
  void forward(const ForwardBatch&, KvCache&, float*, float*, Exec&) override {
    ADD_FAILURE() << "asked for logits";
  }
  bool can_sample() const override { return true; }
  void forward_and_sample(const ForwardBatch& batch, KvCache& cache, const SampleBatch& sampling,
                          const SampledBatch& sampled, float*, Exec& exec) override {
    ASSERT_EQ(sampling.rows.size(), batch.logit_rows.size());
    ASSERT_EQ(sampled.tokens.size(), batch.logit_rows.size());
    const auto vocab = static_cast<std::size_t>(config().vocab_size);
    std::vector<float> logits(batch.logit_rows.size() * vocab);
    model_.forward(batch, cache, logits.empty() ? nullptr : logits.data(), nullptr, exec);
    for (std::size_t i = 0; i < sampled.tokens.size(); ++i) {
      EXPECT_EQ(sampling.rows[i].inverse_temperature, 0);
      sampled.tokens[i] = static_cast<int32_t>(argmax(std::span(logits).subspan(i * vocab, vocab)));
    }
    ++num_calls;
  }
  int num_calls = 0;

 private:
  Model& model_;
};

struct MiningSetup {
  explicit MiningSetup(bool prefix_cache = true, bool speculation = false,
                       int64_t max_sequence_tokens = 0)
      : tiny(mining_options(prefix_cache, max_sequence_tokens), talkative_model(), 2),
        coarse(requantized_checkpoint(*tiny.loaded.checkpoint, weight_format_from_name("mxfp4"))),
        draft(Model::load(*coarse, {.dense_dtype = DType::kF32, .compute = ComputeType::kF32},
                          tiny.loaded.owned.exec)) {
    if (speculation) {
      tiny.engine.set_drafter(DraftModel::make(*draft, tiny, 16 * 128, true), {.num_tokens = 4});
    }
  }
  std::map<int64_t, MinedQuestion> mine(const MiningTask& task, int64_t max_live,
                                        Model* other_draft = nullptr,
                                        int64_t max_new_tokens = kMaxNew) {
    std::vector<int64_t> questions;
    for (std::size_t i = 0; i < task.prompts.size(); ++i) {
      questions.push_back(static_cast<int64_t>(i));
    }
    JudgeMiner miner(tiny.engine, other_draft != nullptr ? *other_draft : *draft, KvFormat::kF32,
                     task, {.max_new_tokens = max_new_tokens, .max_live = max_live},
                     tiny.loaded.owned.exec);
    std::map<int64_t, MinedQuestion> mined;
    miner.run(questions, [&](const MinedQuestion& q) { mined[q.question] = q; });
    return mined;
  }
  TinyEngine tiny;
  std::unique_ptr<Checkpoint> coarse;
  std::unique_ptr<Model> draft;
};

// One model run over one text: what the greedy next tokens and final hidden states are.
class Plain {
 public:
  Plain(Model& model, Exec& exec) : model_(model), exec_(exec) {}
  // Greedy choice behind every token of `ids`; the hidden state of the last one.
  std::vector<int32_t> choices(const std::vector<int32_t>& ids, std::vector<float>* hidden) {
    const auto n = static_cast<int64_t>(ids.size());
    const auto cache = model_.make_cache(KvFormat::kF32, 128, 128);
    KvSequence sequence = cache->new_sequence();
    EXPECT_TRUE(cache->reserve(sequence, n));
    std::vector<int64_t> positions;
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < n; ++i) {
      positions.push_back(i);
      rows.push_back(static_cast<int32_t>(i));
    }
    const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
    const auto width = static_cast<std::size_t>(model_.config().hidden_size);
    std::vector<float> logits(ids.size() * vocab), all_hidden(ids.size() * width);
    const KvRows kv_rows{.sequence = &sequence, .row_begin = 0, .num_rows = n};
    model_.forward(
        {.token_ids = ids, .positions = positions, .sequences = {&kv_rows, 1}, .logit_rows = rows},
        *cache, logits.data(), all_hidden.data(), exec_);
    cache->release(sequence);
    std::vector<int32_t> best;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto row = std::span(logits).subspan(i * vocab, vocab);
      best.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
    }
    if (hidden != nullptr)
      hidden->assign(all_hidden.end() - static_cast<int64_t>(width), all_hidden.end());
    return best;
  }

 private:
  Model& model_;
  Exec& exec_;
};

MinedQuestion mine_serially(MiningSetup& setup, const MiningTask& task, int64_t question,
                            int64_t max_new_tokens = kMaxNew) {
  Plain target(*setup.tiny.loaded.model, setup.tiny.loaded.owned.exec);
  Plain draft(*setup.draft, setup.tiny.loaded.owned.exec);
  const std::vector<int32_t>& prompt = task.prompts[static_cast<std::size_t>(question)];
  const auto join = [&](const std::vector<int32_t>& answer) {
    std::vector<int32_t> ids = prompt;
    ids.insert(ids.end(), answer.begin(), answer.end());
    return ids;
  };
  bool truncated = false;
  // Goes on until a stop letter appears in the new text, or the limit.
  const auto go_on = [&](std::vector<int32_t> answer) {
    const std::size_t begin = answer.size();
    truncated = true;
    while (std::ssize(answer) < max_new_tokens) {
      answer.push_back(target.choices(join(answer), nullptr).back());
      const std::span<const int32_t> added = std::span<const int32_t>(answer).subspan(begin);
      const std::string text = setup.tiny.tokenizer.decode(added, true);
      if (cut_at_stop(text, task.stop).size() < text.size()) {
        truncated = false;
        break;
      }
    }
    return answer;
  };
  const auto outcome_of = [&](const std::vector<int32_t>& answer) -> Outcome {
    if (truncated) return std::nullopt;
    return task.outcome(question,
                        cut_at_stop(setup.tiny.tokenizer.decode(answer, true), task.stop));
  };
  MinedQuestion mined;
  mined.question = question;
  const std::vector<int32_t> answer = go_on({});
  const Outcome reference = outcome_of(answer);
  if (!reference) return mined;
  mined.used = true;
  mined.outcome = *reference;
  SemiGreedySearch search(answer, *reference);
  for (;;) {
    const std::vector<int32_t> all = draft.choices(join(search.current()), nullptr);
    const std::vector<int32_t> choices(all.begin() + std::ssize(prompt) - 1, all.end() - 1);
    if (!search.find_next(choices)) break;
    std::vector<float> hidden;
    target.choices(join(search.tried_prefix()), &hidden);
    mined.features.insert(mined.features.end(), hidden.begin(), hidden.end());
    std::vector<int32_t> alternative = go_on(search.tried_prefix());
    const Outcome outcome = outcome_of(alternative);
    search.report(std::move(alternative), outcome, truncated);
  }
  mined.tokens = search.records();
  mined.answer = search.current();
  return mined;
}

void expect_same(const MinedQuestion& actual, const MinedQuestion& expected) {
  EXPECT_EQ(actual.used, expected.used);
  EXPECT_EQ(actual.outcome, expected.outcome);
  EXPECT_EQ(actual.answer, expected.answer);
  ASSERT_EQ(actual.tokens.size(), expected.tokens.size());
  for (std::size_t i = 0; i < actual.tokens.size(); ++i) {
    EXPECT_EQ(actual.tokens[i].position, expected.tokens[i].position);
    EXPECT_EQ(actual.tokens[i].important, expected.tokens[i].important);
    EXPECT_EQ(actual.tokens[i].target_token, expected.tokens[i].target_token);
    EXPECT_EQ(actual.tokens[i].draft_token, expected.tokens[i].draft_token);
    EXPECT_EQ(actual.tokens[i].truncated, expected.tokens[i].truncated);
  }
  EXPECT_TRUE(same_bits(actual.features, expected.features));
}

TEST(JudgeMiner, AnyCompanyGivesTheSerialRecords) {
  const MiningTask task = make_task();
  MiningSetup reference;
  std::vector<MinedQuestion> expected;
  std::size_t important = 0, unimportant = 0;
  for (std::size_t i = 0; i < task.prompts.size(); ++i) {
    expected.push_back(mine_serially(reference, task, static_cast<int64_t>(i)));
    for (const MinedToken& token : expected.back().tokens) {
      (token.important ? important : unimportant) += 1;
    }
  }
  EXPECT_GT(important, 5u);
  EXPECT_GT(unimportant, 5u);
  for (const int64_t max_live : {1, 3, 14}) {
    for (const bool prefix_cache : {false, true}) {
      for (const bool speculation : {false, true}) {
        SCOPED_TRACE(testing::Message() << max_live << prefix_cache << speculation);
        MiningSetup setup(prefix_cache, speculation);
        const auto mined = setup.mine(task, max_live);
        ASSERT_EQ(mined.size(), expected.size());
        for (std::size_t i = 0; i < expected.size(); ++i) {
          SCOPED_TRACE(i);
          expect_same(mined.at(static_cast<int64_t>(i)), expected[i]);
        }
      }
    }
  }
}

// M6: where the draft's token is the last that the limit allows, nothing may follow it. Each
// question by itself, in an engine that has room for no more, with the length of its answer as the
// limit.
TEST(JudgeMiner, NoAnswerIsLongerThanTheLimit) {
  const MiningTask all = make_task();
  MiningSetup reference;
  int64_t full = 0;
  for (const auto& [question, q] : reference.mine(all, 4)) {
    SCOPED_TRACE(question);
    const int64_t limit = std::ssize(q.answer);
    if (limit < 2) continue;
    MiningTask task = all;
    task.prompts = {all.prompts[static_cast<std::size_t>(question)]};
    MiningSetup setup(true, false, std::ssize(task.prompts[0]) + limit + 1);
    const MinedQuestion mined = setup.mine(task, 1, nullptr, limit).at(0);
    expect_same(mined, mine_serially(reference, task, 0, limit));
    EXPECT_LE(std::ssize(mined.answer), limit);
    for (const MinedToken& token : mined.tokens) {
      if (token.position < limit - 1) continue;
      EXPECT_EQ(token.position, limit - 1);
      EXPECT_TRUE(token.important && token.truncated);
      ++full;
    }
  }
  EXPECT_GT(full, 0);
}

TEST(JudgeMiner, DraftsMayChooseByThemselves) {
  const MiningTask task = make_task();
  MiningSetup setup;
  const auto expected = setup.mine(task, 4);
  ChoosingModel choosing(*setup.draft);
  const auto mined = setup.mine(task, 4, &choosing);
  EXPECT_GT(choosing.num_calls, 0);
  ASSERT_EQ(mined.size(), expected.size());
  for (const auto& [question, q] : expected) expect_same(mined.at(question), q);
}

// Without sharing every token of every prompt is computed: what fit-judge --no-prefix-sharing
// measures.
TEST(JudgeMiner, SharesWhatAlternativesHaveInCommon) {
  const MiningTask task = make_task();
  MiningSetup shares(true), computes(false);
  shares.mine(task, 4);
  computes.mine(task, 4);
  EXPECT_GT(shares.tiny.engine.stats().shared_prompt_tokens, 0);
  EXPECT_EQ(computes.tiny.engine.stats().shared_prompt_tokens, 0);
}

TEST(JudgeMiner, UnusableQuestionsAreLeftOut) {
  MiningTask task = make_task();
  task.is_usable = [](const std::string& outcome) { return outcome == "1"; };
  MiningSetup setup;
  const auto mined = setup.mine(task, 4);
  for (const auto& [question, q] : mined) {
    if (!q.used) {
      EXPECT_TRUE(q.tokens.empty());
    }
    if (q.used) {
      EXPECT_EQ(q.outcome, "1");
    }
  }
  expect_error(ErrorCode::kInvalidArgument, "tokens", [&] {
    JudgeMiner(setup.tiny.engine, *setup.draft, KvFormat::kF32, task,
               {.max_new_tokens = 120, .max_live = 2}, setup.tiny.loaded.owned.exec);
  });
}

// A run that ends anywhere goes on, and what it holds at the end is the same.
TEST(MiningJournal, GoesOnWhereItStopped) {
  const MiningTask task = make_task();
  const TemporaryDirectory directory;
  MiningSetup setup;
  const auto expected = setup.mine(task, 5);
  const int64_t width = setup.tiny.loaded.config().hidden_size;
  std::size_t done = 0;
  for (const std::size_t stop_after : {3u, 4u, 20u}) {
    MiningJournal journal(directory / "work", "who", width);
    EXPECT_EQ(journal.questions().size(), done);
    for (const auto& [question, q] : expected) {
      bool known = false;
      for (const MinedQuestion& old : journal.questions())
        known = known || old.question == question;
      if (known || journal.questions().size() >= done + stop_after) continue;
      journal.append(q);
    }
    done = journal.questions().size();
    // A kill in the middle of a line, and of features.
    if (stop_after < 20) {
      const std::string file = directory / "work/journal.jsonl";
      write_file_atomically(file, read_file(file) + "{\"question\":99,\"us");
      const std::string features = directory / "work/features.f32";
      write_file_atomically(features, read_file(features) + "torn");
    }
  }
  const MiningJournal journal(directory / "work", "who", width);
  ASSERT_EQ(journal.questions().size(), expected.size());
  const std::vector<float> features = journal.load_features();
  std::size_t row = 0;
  for (const MinedQuestion& q : journal.questions()) {
    MinedQuestion whole = q;
    const auto begin = features.begin() + static_cast<int64_t>(row) * width;
    whole.features.assign(begin, begin + std::ssize(q.tokens) * width);
    row += q.tokens.size();
    expect_same(whole, expected.at(q.question));
  }
  EXPECT_EQ(row * static_cast<std::size_t>(width), features.size());
}

MinedQuestion mined_question(int64_t number, int64_t num_tokens) {
  MinedQuestion q;
  q.question = number;
  q.used = true;
  q.tokens.resize(static_cast<std::size_t>(num_tokens));
  q.features.assign(static_cast<std::size_t>(num_tokens) * 4, static_cast<float>(number));
  return q;
}

TEST(MiningJournal, TakesInTheJournalsOfRanks) {
  const TemporaryDirectory directory;
  const std::string work = directory / "work";
  MiningJournal(work, "who", 4).append(mined_question(0, 1));
  const std::string ranks[] = {MiningJournal::directory_of_rank(work, 1),
                               MiningJournal::directory_of_rank(work, 2)};
  {
    MiningJournal one(ranks[0], "who", 4), two(ranks[1], "who", 4);
    one.append(mined_question(1, 2));
    one.append(mined_question(4, 0));
    two.append(mined_question(2, 3));
  }
  // Killed between taking rank 1's in and removing it: question 1 is there already.
  MiningJournal(work, "who", 4).append(mined_question(1, 2));
  // Killed in the middle of a line.
  const std::string torn = ranks[1] + "/journal.jsonl";
  write_file_atomically(torn, read_file(torn) + "{\"question\":99,\"us");

  auto journal = std::make_unique<MiningJournal>(work, "who", 4);
  journal->absorb_ranks();
  const auto check = [](const MiningJournal& all) {
    std::vector<int64_t> numbers;
    std::vector<float> features;
    for (const MinedQuestion& q : all.questions()) {
      numbers.push_back(q.question);
      features.insert(features.end(), q.tokens.size() * 4, static_cast<float>(q.question));
    }
    EXPECT_EQ(numbers, (std::vector<int64_t>{0, 1, 4, 2}));
    EXPECT_EQ(all.load_features(), features);
  };
  check(*journal);
  expect_error(ErrorCode::kIo, "another process", [&] { MiningJournal(work, "who", 4); });
  journal.reset();
  check(MiningJournal(work, "who", 4));
  journal = std::make_unique<MiningJournal>(work, "who", 4);
  for (const std::string& folder : ranks) EXPECT_FALSE(std::filesystem::exists(folder));
  journal->absorb_ranks();  // nothing is left
  check(*journal);

  MiningJournal(ranks[0], "someone else", 4).append(mined_question(7, 1));
  expect_error(ErrorCode::kInvalidArgument, "other models", [&] { journal->absorb_ranks(); });
  EXPECT_TRUE(std::filesystem::exists(ranks[0]));
}

TEST(MiningJournal, RefusesWhatIsNotItsOwn) {
  const TemporaryDirectory directory;
  MinedQuestion q;
  q.used = true;
  q.tokens.resize(2);
  q.features.assign(8, 1.0f);
  MiningJournal(directory / "work", "who", 4).append(q);
  expect_error(ErrorCode::kInvalidArgument, "other models",
               [&] { MiningJournal(directory / "work", "someone else", 4); });
  const std::string features = directory / "work/features.f32";
  write_file_atomically(features, "short");
  expect_error(ErrorCode::kCorruptData, "features",
               [&] { MiningJournal(directory / "work", "who", 4); });
  write_file_atomically(features, std::string(32, 'x'));
  const std::string file = directory / "work/journal.jsonl";
  write_file_atomically(file, "who\n{\"question\":\"x\"}\n");
  expect_error(ErrorCode::kCorruptData, "line 2",
               [&] { MiningJournal(directory / "work", "who", 4); });
  write_file_atomically(file, "who\nnonsense\n");
  expect_error(ErrorCode::kCorruptData, "journal",
               [&] { MiningJournal(directory / "work", "who", 4); });
}

// Numbers that do not fit were taken modulo 2^32, those with a fraction cut.
TEST(MiningJournal, RefusesNumbersThatCannotBe) {
  const std::string good =
      R"({"question":1,"used":true,"outcome":"4","answer":[5],"tokens":[[0,1,5,9,0]],"generated":7})";
  const auto parse = [](const std::string& line) {
    return parse_mining_journal("who\n" + line + "\n", "who", "journal");
  };
  EXPECT_EQ(parse(good).questions.at(0).tokens.at(0).draft_token, 9);
  const std::pair<const char*, const char*> changes[] = {{"[0,1,5,9,0]", "[0,1,4294967301,9,0]"},
                                                         {"[0,1,5,9,0]", "[0,1,5.5,9,0]"},
                                                         {"[0,1,5,9,0]", "[-1,1,5,9,0]"},
                                                         {"[0,1,5,9,0]", "[0,2,5,9,0]"},
                                                         {"[0,1,5,9,0]", "[0,1,5,9]"},
                                                         {"[0,1,5,9,0]", "7"},
                                                         {"[[0,1,5,9,0]]", "{}"},
                                                         {"[5]", "[1e300]"},
                                                         {"[5]", "[-1]"},
                                                         {":1,", ":-1,"},
                                                         {"\"used\":true,", ""},
                                                         {"\"4\"", "4"},
                                                         {":7}", ":1e30}"}};
  for (const auto& [from, to] : changes) {
    SCOPED_TRACE(to);
    std::string line = good;
    line.replace(line.find(from), std::string_view(from).size(), to);
    expect_error(ErrorCode::kCorruptData, "journal: line 2", [&] { parse(line); });
  }
}

}  // namespace
}  // namespace lathe
