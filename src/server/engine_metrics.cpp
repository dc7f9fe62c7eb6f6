#include "server/engine_metrics.h"

namespace lathe {
namespace {

// Families of one sample, or of one for each value of a label.
class Families {
 public:
  Families(MetricText& out, const MetricLabels& labels) : out_(out), labels_(labels) {}

  void one(const char* name, const char* type, const char* help, double value) {
    out_.family(name, type, help);
    out_.sample(name, labels_, value);
  }
  void counter(const char* name, const char* help, int64_t value) {
    one(name, "counter", help, static_cast<double>(value));
  }
  void seconds(const char* name, const char* help, double value) {
    one(name, "counter", help, value);
  }
  void gauge(const char* name, const char* help, double value) { one(name, "gauge", help, value); }
  void by(const char* name, const char* type, const char* help, const char* label,
          const std::vector<std::pair<std::string, int64_t>>& values) {
    out_.family(name, type, help);
    for (const auto& [key, value] : values) {
      MetricLabels labels = labels_;
      labels.emplace_back(label, key);
      out_.sample(name, labels, static_cast<double>(value));
    }
  }
  void histogram(const char* name, const char* help, const Histogram& values) {
    out_.family(name, "histogram", help);
    out_.histogram(name, labels_, values);
  }

 private:
  MetricText& out_;
  MetricLabels labels_;
};

// Positions as far as any window was accepted, at least the first.
std::vector<std::pair<std::string, int64_t>> by_position(const SpeculationStats& windows) {
  std::vector<std::pair<std::string, int64_t>> positions;
  for (std::size_t i = 0; i < windows.accepted_at.size(); ++i) {
    if (i > 0 && windows.accepted_at[i] == 0) break;
    positions.emplace_back(std::to_string(i), windows.accepted_at[i]);
  }
  return positions;
}

void add_judge_metrics(Families& families, const ServedSpeculation& served,
                       const EngineStats& engine, const JudgeShadow* shadow) {
  families.counter("lathe_judge_evaluations_total",
                   "Draft tokens that the exact rule rejected and the judge was asked about.",
                   engine.speculation.judged);
  families.counter("lathe_judge_accept_total", "Of these, those that it let pass.",
                   engine.speculation.judge_accepted);
  families.gauge("lathe_judge_logprob_deficit", "What that cost so far, in nats.",
                 engine.speculation.logprob_deficit);
  constexpr auto& bounds = SpeculationStats::kJudgeScoreBounds;
  families.histogram("lathe_judge_score",
                     "P(important) of judged tokens; empty for judges that have none.",
                     Histogram({bounds.begin(), bounds.end()}, engine.windows.judge_scores,
                               engine.windows.judge_score_sum));
  families.gauge("lathe_judge_threshold_effective", "Of requests that leave it to the server.",
                 shadow != nullptr ? shadow->threshold() : served.judge_threshold);
  if (shadow == nullptr) return;
  families.gauge(
      "lathe_judge_alarm",
      "1: answers differed more often than --judge-alarm allows; the threshold is lower.",
      shadow->alarmed() ? 1 : 0);
  families.counter("lathe_shadow_requests_total",
                   "Judged answers that were compared with the exact ones.",
                   shadow->compared.value());
  families.counter("lathe_shadow_disagree_total", "Of these, those with another text.",
                   shadow->differed.value());
  families.counter("lathe_shadow_dropped_total",
                   "Not compared: the queue was full, or requests came between too often.",
                   shadow->dropped.value());
  families.gauge("lathe_shadow_queue", "Judged answers that wait to be compared.",
                 static_cast<double>(shadow->num_queued()));
  families.histogram("lathe_shadow_logprob_deficit",
                     "log p(exact answer) - log p(judged answer), in nats.", shadow->deficit);
}

}  // namespace

void add_speculation_metrics(MetricText& out, const MetricLabels& labels,
                             const ServedSpeculation& served, const EngineStats& engine,
                             const JudgeShadow* shadow) {
  if (served.method.empty()) return;
  const SpeculationUsage& usage = engine.speculation;
  const SpeculationStats& windows = engine.windows;
  const int64_t accepted = usage.accepted + usage.judge_accepted;
  Families vllm(out, labels);
  vllm.counter("vllm:spec_decode_num_drafts_total", "Windows of draft tokens.", usage.cycles);
  vllm.counter("vllm:spec_decode_num_draft_tokens_total", "Draft tokens.", usage.drafted);
  vllm.counter("vllm:spec_decode_num_accepted_tokens_total", "Draft tokens that were accepted.",
               accepted);
  vllm.by("vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter",
          "Accepted draft tokens by their place in the window.", "position", by_position(windows));

  MetricLabels with_parts = labels;
  with_parts.emplace_back("draft", served.method);
  with_parts.emplace_back("judge", served.judge);
  Families ours(out, with_parts);
  ours.counter("lathe_spec_cycles_total", "Steps of a choice with at least one draft token.",
               usage.cycles);
  ours.counter("lathe_spec_draft_tokens_total", "Draft tokens.", usage.drafted);
  ours.by("lathe_spec_accepted_tokens_total", "counter", "Draft tokens that were accepted.", "by",
          {{"match", usage.accepted}, {"judge", usage.judge_accepted}});
  ours.by("lathe_spec_emitted_tokens_total", "counter", "Tokens of steps with drafts.", "kind",
          {{"match", usage.accepted},
           {"judge", usage.judge_accepted},
           {"corrected", usage.corrected},
           {"bonus", usage.bonus}});
  ours.by("lathe_spec_accepted_by_position_total", "counter",
          "Accepted draft tokens by their place in the window.", "pos", by_position(windows));
  ours.seconds("lathe_spec_draft_seconds_total", "Spent on drafting.", windows.draft_seconds);
  ours.seconds("lathe_spec_verify_seconds_total", "Spent in steps that verified drafts.",
               windows.verify_seconds);
  // Windows of each length, gathered under the bounds.
  const std::vector<double> bounds = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};
  std::vector<int64_t> counts(bounds.size());
  for (std::size_t k = 1, bucket = 0; k < windows.windows_of.size(); ++k) {
    while (static_cast<double>(k) > bounds[bucket]) ++bucket;
    counts[bucket] += windows.windows_of[k];
  }
  ours.histogram("lathe_spec_k", "Draft tokens of a window.",
                 Histogram(bounds, counts, static_cast<double>(usage.drafted)));
  if (!served.judge.empty()) add_judge_metrics(ours, served, engine, shadow);
}

void add_cache_metrics(MetricText& out, const MetricLabels& labels, const EngineStats& engine) {
  Families families(out, labels);
  const KvBlocks& all = engine.cache_blocks;
  const KvBlocks& free = engine.free_cache_blocks;
  const KvBlocks& bytes = engine.cache_block_bytes;
  families.gauge("lathe_cache_blocks", "Live blocks of the cache.", static_cast<double>(all.live));
  families.gauge("lathe_cache_free_blocks",
                 "Live blocks that hold nothing; the rest: running, or kept for later.",
                 static_cast<double>(free.live));
  families.gauge("lathe_cache_coded_blocks", "Blocks for codes of running choices.",
                 static_cast<double>(all.coded));
  families.gauge("lathe_cache_coded_free_blocks", "Those that hold nothing.",
                 static_cast<double>(free.coded));
  families.by("lathe_cache_used_bytes", "gauge", "Bytes of the blocks that hold something.", "kind",
              {{"live", (all.live - free.live) * bytes.live},
               {"coded", (all.coded - free.coded) * bytes.coded}});
  if (engine.cache_block_numbers == 0) return;  // before the first step
  out.family("lathe_cache_bits_per_number", "gauge",
             "Bits that a key's or value's number takes in a block of this kind.");
  for (const auto& [kind, block_bytes] :
       {std::pair{"live", bytes.live}, std::pair{"coded", bytes.coded}}) {
    if (block_bytes == 0) continue;
    MetricLabels with_kind = labels;
    with_kind.emplace_back("kind", kind);
    out.sample(
        "lathe_cache_bits_per_number", with_kind,
        8 * static_cast<double>(block_bytes) / static_cast<double>(engine.cache_block_numbers));
  }
}

void add_parking_metrics(MetricText& out, const MetricLabels& labels, const ParkingStats& parking) {
  if (parking.piece_tokens == 0) return;
  const ParkedStore::Stats& store = parking.store;
  Families families(out, labels);
  families.by("lathe_parked_pieces", "gauge", "Parked pieces of prefixes that are held.", "tier",
              {{"memory", store.memory_pieces}, {"disk", store.disk_pieces}});
  families.by("lathe_parked_bytes", "gauge", "Their bytes.", "tier",
              {{"memory", store.memory_bytes}, {"disk", store.disk_bytes}});
  families.by("lathe_parked_piece_bytes", "gauge",
              "Bytes of a piece without sinks, parked and in the running format.", "as",
              {{"parked", parking.piece_bytes}, {"live", parking.live_piece_bytes}});
  families.counter("lathe_parked_tokens_total", "Tokens that were parked.", parking.parked_tokens);
  families.counter("lathe_woken_tokens_total",
                   "Tokens of prompts that were woken instead of computed.", parking.woken_tokens);
  families.counter("lathe_wakes_total", "Choices that woke something.", parking.num_wakes);
  families.by("lathe_parked_hits_total", "counter", "Pieces that were found.", "tier",
              {{"memory", store.num_hits - store.num_disk_hits}, {"disk", store.num_disk_hits}});
  families.counter("lathe_parked_misses_total", "Pieces that were gone or damaged when wanted.",
                   store.num_misses);
  families.counter("lathe_parked_evictions_total", "Pieces given up for lack of room.",
                   store.num_evicted);
  families.counter("lathe_parked_corrupt_total", "Files deleted for what was in them.",
                   store.num_corrupt);
  families.counter("lathe_parked_errors_total", "Errors of the file system.", store.num_errors);
}

}  // namespace lathe
