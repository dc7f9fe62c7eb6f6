// lathe fit-judge: mine important tokens on a task, train a judge, say what it is worth.
#include "compress/fit_judge.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "base/sha256.h"
#include "cli/command.h"
#include "cli/draft_flags.h"
#include "cli/flags.h"
#include "cli/format.h"
#include "cli/judge_report.h"
#include "cli/judge_target.h"
#include "cli/judge_task.h"
#include "cli/loaded_model.h"
#include "cli/output.h"
#include "cli/ranks.h"
#include "compress/mining_journal.h"
#include "eval/user_task.h"

namespace lathe {
namespace {

struct FitJudgeFlags {
  CommonFlags common;
  ModelFlags model;
  std::string target, draft, output, report;
  std::string work;
  JudgeTaskFlags task;
  int64_t max_tokens = 400;
  int64_t batch = 8;
  bool no_prefix_sharing = false;
  bool mine_only = false;
  std::string shard;
  FitJudgeOptions fit;
};

// What must be the same for a run to go on where it stopped. More questions may be asked for.
std::string identity(const FitJudgeFlags& flags, const JudgeTarget& t, const LoadedModel& target,
                     const LoadedModel& draft, const std::string& dataset_sha256) {
  const JudgeTarget d = judge_target(draft.checkpoint());
  return dump_json({{"target", {t.config_sha256, t.weights_sha256}},
                    {"draft", {d.config_sha256, d.weights_sha256}},
                    {"task", flags.task.name},
                    {"checker", judge_checker_name(flags.task)},
                    {"dataset_sha256", dataset_sha256},
                    {"max_new_tokens", flags.max_tokens},
                    {"compute", target.compute_path()}});
}

Json mining_json(const FitJudgeFlags& flags, const std::string& dataset_sha256,
                 const std::vector<MinedQuestion>& questions) {
  int64_t used = 0, records = 0, important = 0, truncated = 0, generated = 0;
  for (const MinedQuestion& q : questions) {
    used += q.used;
    records += std::ssize(q.tokens);
    generated += q.generated_tokens;
    for (const MinedToken& token : q.tokens) {
      important += token.important;
      truncated += token.truncated;
    }
  }
  return {{"task", flags.task.name},
          {"checker", judge_checker_name(flags.task)},
          {"decode", "greedy"},
          {"max_new_tokens", flags.max_tokens},
          {"dataset_sha256", dataset_sha256},
          {"questions", questions.size()},
          {"used_questions", used},
          {"records", records},
          {"positive_rate",
           records == 0 ? 0.0 : static_cast<double>(important) / static_cast<double>(records)},
          {"truncated", truncated},
          {"generated_tokens", generated}};
}

// What mining has cost in this run, beside what it has found in all.
struct MiningRun {
  double seconds = 0;
  int64_t questions = 0;
  int64_t generated_tokens = 0;
  int64_t shared_prompt_tokens = 0;  // of this rank
};

Json run_json(const MiningRun& run, const FitJudgeFlags& flags) {
  return {{"seconds", run.seconds},
          {"questions", run.questions},
          {"generated_tokens", run.generated_tokens},
          {"shared_prompt_tokens", run.shared_prompt_tokens},
          {"batch", flags.batch},
          {"prefix_sharing", !flags.no_prefix_sharing}};
}

// --mine-only: no judge, what was mined.
void print_mining(const FitJudgeFlags& flags, const std::string& work, const Json& mining,
                  const MiningRun& run) {
  if (flags.common.json) {
    print_json({{"work", work}, {"mining", mining}, {"run", run_json(run, flags)}});
    return;
  }
  const double seconds = std::max(run.seconds, 1e-9);
  print_line(str(work, ": ", mining["questions"].get<int64_t>(), " questions, ",
                 mining["records"].get<int64_t>(), " tokens tried"));
  print_line(format("this run: %lld questions in %s, %.3g questions/s, %.4g tokens/s",
                    static_cast<long long>(run.questions), format_duration(run.seconds).c_str(),
                    static_cast<double>(run.questions) / seconds,
                    static_cast<double>(run.generated_tokens) / seconds));
}

// judge.safetensors: judge.html
std::string report_path(const std::string& output) {
  constexpr std::string_view kSuffix = ".safetensors";
  const bool has_suffix = output.size() > kSuffix.size() && output.ends_with(kSuffix);
  return (has_suffix ? output.substr(0, output.size() - kSuffix.size()) : output) + ".html";
}

// What is not mined yet, as rank 0 knows from its journal and those that ranks of an earlier run
// left behind.
std::vector<int64_t> questions_left(std::span<const MinedQuestion> mined, int64_t num_questions) {
  std::vector<char> is_done(static_cast<std::size_t>(num_questions), 0);
  for (const MinedQuestion& q : mined) {
    if (q.question >= 0 && q.question < num_questions) {
      is_done[static_cast<std::size_t>(q.question)] = 1;
    }
  }
  std::vector<int64_t> questions;
  for (int64_t i = 0; i < num_questions; ++i) {
    if (!is_done[static_cast<std::size_t>(i)]) questions.push_back(i);
  }
  return questions;
}

// --shard I/N: question i belongs to shard i % N + 1, which mines it without knowing of the others.
struct Shard {
  int64_t number = 0;  // from 1; 0: no shards
  int64_t count = 0;
};

constexpr int kMaxShards = 4096;

Shard parse_shard(const std::string& text) {
  if (text.empty()) return {};
  Shard shard;
  const char* end = text.data() + text.size();
  const auto number = std::from_chars(text.data(), end, shard.number);
  const bool has_slash = number.ec == std::errc() && number.ptr != end && *number.ptr == '/';
  const auto count = std::from_chars(has_slash ? number.ptr + 1 : end, end, shard.count);
  if (count.ec != std::errc() || count.ptr != end || shard.number < 1 ||
      shard.number > shard.count || shard.count > kMaxShards) {
    fail(ErrorCode::kInvalidArgument, "--shard ", text,
         ": must be I/N, 1 <= I <= N <= ", kMaxShards);
  }
  return shard;
}

// What is neither in the journal of `work` nor in this shard's own.
std::vector<int64_t> questions_of_shard(const Shard& shard, const std::string& work,
                                        const std::string& identity, const MiningJournal& journal,
                                        int64_t num_questions) {
  std::vector<MinedQuestion> mined = MiningJournal::read_questions(work, identity);
  mined.insert(mined.end(), journal.questions().begin(), journal.questions().end());
  std::vector<int64_t> left = questions_left(mined, num_questions);
  std::erase_if(left, [&](int64_t i) { return i % shard.count != shard.number - 1; });
  return left;
}

// Opens this rank's journal, behind rank 0, which takes in what ranks of an earlier run left.
void open_journal(const std::string& work, const std::string& own_identity, int64_t hidden_size,
                  Communicator& ranks, std::optional<MiningJournal>& journal) {
  std::string first = own_identity;
  broadcast_text(ranks, 0, first);
  if (own_identity != first) {
    fail(ErrorCode::kInvalidArgument, "other models, questions or kernels than ",
         rank_name(ranks, 0), " has: ", own_identity, " instead of ", first);
  }
  if (ranks.rank() == 0) {
    journal.emplace(work, own_identity, hidden_size);
    journal->absorb_ranks();
  }
  ranks.barrier();
  if (ranks.rank() == 0) return;
  if (!std::filesystem::exists(work + "/journal.jsonl")) {
    fail(ErrorCode::kIo, work,
         ": not there; ranks need --work on a file system that all of them see");
  }
  journal.emplace(MiningJournal::directory_of_rank(work, ranks.rank()), own_identity, hidden_size);
}

void run_fit_judge(FitJudgeFlags flags, Communicator& ranks) {
  if (flags.task.questions < 0 || flags.max_tokens < 2 || flags.batch < 1 || flags.batch > 256) {
    fail(ErrorCode::kInvalidArgument,
         "--questions must be 0 or more, --max-tokens at least 2, --batch 1 to 256");
  }
  if (!(flags.fit.recall > 0 && flags.fit.recall <= 1)) {
    fail(ErrorCode::kInvalidArgument, "--recall ", flags.fit.recall, ": above 0, at most 1");
  }
  const Shard shard = parse_shard(flags.shard);
  if (shard.number > 0 && ranks.size() > 1) {
    fail(ErrorCode::kInvalidArgument, "--shard divides the questions as mpirun does; take one");
  }
  check_live_cache(flags.model, "fit-judge");
  divide_threads(flags.common);
  Runtime runtime(flags.common);
  Exec& exec = runtime.exec();
  const bool quiet = flags.common.json || ranks.rank() != 0;
  const LoadOptions load = {.quiet = quiet};
  const LoadedModel target(flags.target, flags.model, exec, load);
  const JudgeTask task(flags.task, target);
  ModelFlags draft_flags = flags.model;
  draft_flags.tensor_parallel = 1;
  const LoadedModel draft(flags.draft, draft_flags, exec, load);
  check_draft_vocabulary(target, draft);
  std::size_t longest = 0;
  for (const auto& prompt : task.mining().prompts) longest = std::max(longest, prompt.size());
  const int64_t sequence = static_cast<int64_t>(longest) + flags.max_tokens + 1;
  const int64_t blocks = (sequence / kBlockSize + 2) * kBlockSize;
  const EngineOptions options = resolve(
      {.max_num_seqs = flags.batch,
       .max_batch_tokens = std::max<int64_t>(512, flags.batch),
       .max_sequence_tokens = sequence,
       .cache_tokens = 2 * flags.batch * blocks,  // as much again for answers to depart from
       .kv_format = target.kv_format(),
       .prefix_cache = !flags.no_prefix_sharing},
      target.model().config());
  Engine engine(target.model(), make_engine_cache(target.model(), options), &target.tokenizer(),
                options, exec);
  const int64_t hidden_size = target.model().config().hidden_size;
  const std::string work = flags.work.empty() ? flags.output + ".mining" : flags.work;
  const int64_t num_questions = std::ssize(task.mining().prompts);
  const JudgeTarget fingerprint = judge_target_of(target, flags.model);
  const std::string dataset_sha256 = sha256_hex_of_file(flags.task.data);
  const std::string own_identity = identity(flags, fingerprint, target, draft, dataset_sha256);
  std::optional<MiningJournal> journal;
  std::vector<int64_t> left;       // of all ranks
  std::vector<int64_t> questions;  // of this one
  if (shard.number > 0) {
    const auto rank = static_cast<int>(shard.number);
    journal.emplace(MiningJournal::directory_of_rank(work, rank), own_identity, hidden_size);
    left = questions = questions_of_shard(shard, work, own_identity, *journal, num_questions);
  } else {
    open_journal(work, own_identity, hidden_size, ranks, journal);
    if (ranks.rank() == 0) left = questions_left(journal->questions(), num_questions);
    broadcast_vector(ranks, 0, left);
    for (std::size_t i = 0; i < left.size(); ++i) {
      if (static_cast<int>(i) % ranks.size() == ranks.rank()) questions.push_back(left[i]);
    }
  }
  const auto start = std::chrono::steady_clock::now();
  if (!questions.empty()) {
    JudgeMiner miner(engine, draft.model(), target.kv_format(), task.mining(),
                     {.max_new_tokens = flags.max_tokens, .max_live = flags.batch}, exec);
    Progress progress("mining " + flags.task.name, std::ssize(questions), "questions", quiet);
    miner.run(questions, [&](const MinedQuestion& question) {
      journal->append(question);
      progress.advance();
    });
  }
  MiningRun run;
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  run.questions = std::ssize(left);
  run.shared_prompt_tokens = engine.stats().shared_prompt_tokens;
  if (ranks.rank() != 0) journal.reset();  // its files are rank 0's now
  ranks.barrier();
  if (ranks.rank() != 0) return;
  if (shard.number == 0) journal->absorb_ranks();
  const auto missing = std::ssize(questions_left(journal->questions(), num_questions));
  if (missing > 0 && shard.number == 0) {
    fail(
        ErrorCode::kIo, work, ": ", missing,
        " questions that other ranks mined did not arrive; ranks need --work on a file system that "
        "all of them see");
  }
  // In the order of the questions, however they finished.
  std::vector<MinedQuestion> mined = journal->questions();
  for (const MinedQuestion& q : mined) {
    if (std::binary_search(left.begin(), left.end(), q.question)) {
      run.generated_tokens += q.generated_tokens;
    }
  }
  if (flags.mine_only || shard.number > 0) {
    print_mining(flags, work, mining_json(flags, dataset_sha256, mined), run);
    return;
  }
  const std::vector<float> stored = journal->load_features();
  std::vector<std::size_t> order(mined.size()), first_row(mined.size());
  std::size_t rows = 0;
  for (std::size_t i = 0; i < mined.size(); ++i) {
    order[i] = i;
    first_row[i] = rows;
    rows += mined[i].tokens.size();
  }
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return mined[a].question < mined[b].question; });
  std::vector<MinedQuestion> sorted;
  std::vector<float> features;
  for (const std::size_t i : order) {
    sorted.push_back(mined[i]);
    const auto dim = static_cast<std::size_t>(hidden_size);
    features.insert(
        features.end(), stored.begin() + static_cast<int64_t>(first_row[i] * dim),
        stored.begin() + static_cast<int64_t>((first_row[i] + mined[i].tokens.size()) * dim));
  }
  FittedJudge fitted =
      fit_judge(sorted, features, hidden_size, mining_json(flags, dataset_sha256, sorted),
                flags.fit, exec.threads);
  fitted.file.target = fingerprint;
  write_judge_file(flags.output, fitted.file);
  Json report = parse_json(fitted.file.metadata, "report");
  report["judge"] = flags.output;
  report["default_threshold"] = fitted.file.default_threshold;
  report["mining_seconds"] = run.seconds;
  report["mining_run"] = run_json(run, flags);
  const std::string page = flags.report.empty() ? report_path(flags.output) : flags.report;
  write_file_atomically(page, judge_report_html(report));
  if (flags.common.json) {
    print_json(report);
  } else {
    print(judge_report_text(report) + str("report    ", page, "\n"));
  }
}

}  // namespace

void add_fit_judge_command(CLI::App& app, Invocation& invocation) {
  auto flags = std::make_shared<FitJudgeFlags>();  // shared: the callback outlives this function
  CLI::App* command = app.add_subcommand(
      "fit-judge", "Train a judge that lets harmless draft tokens pass (AutoJudge)");
  command->add_option("--target", flags->target, "The model that is served")
      ->required()
      ->type_name("MODEL");
  command->add_option("--draft", flags->draft, "The model that drafts for it")
      ->required()
      ->type_name("MODEL");
  command
      ->add_option("--task", flags->task.name,
                   "gsm8k, humaneval, or a file TASK.json that names a checker of your own")
      ->required()
      ->type_name("TASK");
  command->add_option("--data", flags->task.data, "Its questions, as JSON lines")
      ->required()
      ->type_name("FILE");
  command->add_option("-o,--out,--output", flags->output, "The judge (judge.safetensors)")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--report", flags->report,
                   "Page with plots of what the judge is worth (default: OUTPUT with .html)")
      ->type_name("FILE");
  command
      ->add_option("--work", flags->work,
                   "Directory of the mining so far; a run that was stopped goes on there (default: "
                   "OUTPUT.mining)")
      ->type_name("DIR");
  const auto add = [&](const char* name, auto& value, const char* help) {
    command->add_option(name, value, help)->capture_default_str()->type_name("N");
  };
  add("--questions", flags->task.questions, "The first so many questions; 0: all");
  add("--max-tokens", flags->max_tokens, "Longest answer");
  add("--batch", flags->batch, "Questions at once");
  add("--seed", flags->fit.seed, "Of the split into training, validation and test questions");
  add("--recall", flags->fit.recall, "Share of important tokens that the default threshold keeps");
  command->add_option("--checker", flags->task.checker, "gsm8k: as in eval")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_flag("--no-prefix-sharing", flags->no_prefix_sharing,
                    "Compute every continuation from its first token, to measure what sharing "
                    "saves; with --batch 1: one continuation at a time");
  command->add_flag("--mine-only", flags->mine_only,
                    "Stop behind the mining and say what it cost; no judge is trained");
  command
      ->add_option("--shard", flags->shard,
                   "Mine the I-th of N parts of the questions and stop: a process each GPU or "
                   "machine, with one --work for all; the next run without it trains on all parts")
      ->type_name("I/N");
  add_model_flags(*command, flags->model);
  add_common_flags(*command, flags->common);
  command->footer(
      "Under mpirun its processes share the questions; --work is then a directory that all see. "
      "--kv takes what needs no codec: a judge learns from the model's own states.\n\n"
      "Example:\n  lathe fit-judge --target big --draft small --task gsm8k --data "
      "gsm8k/train.jsonl --questions 500 -o judge.safetensors\n"
      "  lathe fit-judge ... --mine-only --batch 1 --no-prefix-sharing --work slow   # against "
      "--batch 64 --work fast\n"
      "  lathe fit-judge ... --shard 1/2 --device cuda:0 & lathe fit-judge ... --shard 2/2 "
      "--device "
      "cuda:1; wait; lathe fit-judge ...\n"
      "  lathe fit-judge --target big --draft small --task mine.json --data mine.jsonl -o "
      "judge.safetensors        (docs/tasks.md)");
  command->callback([flags, &invocation] {
    invocation.run = [flags] {
      run_on_ranks([&](Communicator& ranks) { run_fit_judge(*flags, ranks); });
    };
  });
}

}  // namespace lathe
