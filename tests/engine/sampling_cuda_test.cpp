// Sampling on the GPU against engine/sampler.h: the same token for the same logits, parameters and
// random number.
#include "kernels/sampling/sampling_cuda.h"

#include <cfloat>
#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/rng.h"
#include "engine/counter_rng.h"
#include "engine/sampler.h"
#include "support/all_close.h"
#include "support/cuda_cases.h"

namespace lathe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Request {
  SamplingParams params;
  std::vector<int32_t> prompt;
  std::vector<int32_t> outputs;
  std::vector<uint64_t> allowed;  // empty: everything
  int32_t draft = -1;
  std::vector<TokenProb> q;  // of the draft
};

class FixedConstraint : public TokenConstraint {
 public:
  explicit FixedConstraint(const std::vector<uint64_t>& allowed) : allowed_(allowed) {}
  void allowed_tokens(std::span<uint64_t> mask) override {
    std::copy(allowed_.begin(), allowed_.end(), mask.begin());
  }
  void accept(int32_t) override {}
  void rollback(int64_t) override {}

 private:
  const std::vector<uint64_t>& allowed_;
};

struct Sampled {
  int32_t token = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top;
  SampledDraft rejected = {};
};

int64_t position_of(std::size_t row) { return static_cast<int64_t>(row) * 7 + 3; }

TokenCounts counts_of(const Request& request, int64_t vocab_size) {
  if (!request.params.has_penalties()) return {};
  TokenCounts counts(request.prompt, vocab_size, 1000);
  for (const int32_t token : request.outputs) counts.add_output(token);
  return counts;
}

std::vector<Sampled> sample_on_cpu(const std::vector<float>& logits, int64_t vocab_size,
                                   const std::vector<Request>& requests) {
  Sampler sampler(vocab_size);
  std::vector<Sampled> result;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto begin = logits.begin() + static_cast<int64_t>(i) * vocab_size;
    std::vector<float> row(begin, begin + vocab_size);
    FixedConstraint constraint(requests[i].allowed);
    std::vector<TokenLogprob> top(
        static_cast<std::size_t>(std::max<int64_t>(requests[i].params.logprobs, 0)));
    Sampled sampled;
    const SamplingParams& params = requests[i].params;
    const TokenCounts counts = counts_of(requests[i], vocab_size);
    TokenConstraint* const mask = requests[i].allowed.empty() ? nullptr : &constraint;
    const int32_t draft = requests[i].draft;
    try {
      SampledToken token;
      if (draft < 0) {
        token = sampler.sample(row, params, counts, mask, position_of(i), top);
      } else {
        token = sampler.verify(row, params, counts, mask, position_of(i), draft, requests[i].q, top)
                    .sampled;
        SampledToken rejected = {draft, 0, {}};
        sampler.set_logprob(params, rejected);
        sampled.rejected = {.prob = static_cast<float>(sampler.probability(row, params, draft)),
                            .gap = row[static_cast<std::size_t>(token.token)] -
                                   row[static_cast<std::size_t>(draft)],
                            .logprob = rejected.logprob};
      }
      sampled.token = token.token;
      sampled.logprob = token.logprob;
      sampled.top.assign(token.top.begin(), token.top.end());
    } catch (const Error&) {
    }
    result.push_back(sampled);
  }
  return result;
}

std::vector<Sampled> sample_on_gpu(const std::vector<float>& logits, int64_t vocab_size,
                                   const std::vector<Request>& requests) {
  std::vector<SamplingRow> rows;
  std::vector<SamplingCount> counts;
  std::vector<SamplingBias> biases;
  std::vector<uint64_t> masks;
  std::vector<SamplingProb> probs;
  int64_t max_logprobs = 0;
  for (const Request& request : requests) {
    const SamplingParams& params = request.params;
    SamplingRow row;
    row.uniform = uniform_at(params.seed, position_of(rows.size()), RandomStream::kSample);
    row.top_p = params.top_p;
    row.min_p = params.min_p;
    if (params.temperature > 0) {
      row.inverse_temperature = static_cast<float>(1 / params.temperature);
    }
    row.top_k = static_cast<int32_t>(params.top_k);
    row.repetition_penalty = static_cast<float>(params.repetition_penalty);
    row.frequency_penalty = static_cast<float>(params.frequency_penalty);
    row.presence_penalty = static_cast<float>(params.presence_penalty);
    row.counts_begin = static_cast<int32_t>(counts.size());
    if (params.has_penalties()) {
      std::vector<int32_t> tokens = request.prompt;
      tokens.insert(tokens.end(), request.outputs.begin(), request.outputs.end());
      std::sort(tokens.begin(), tokens.end());
      tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
      for (const int32_t token : tokens) {
        counts.push_back({token, static_cast<int32_t>(std::count(request.outputs.begin(),
                                                                 request.outputs.end(), token))});
      }
    }
    row.counts_end = static_cast<int32_t>(counts.size());
    row.biases_begin = static_cast<int32_t>(biases.size());
    for (const LogitBias& bias : params.logit_bias) biases.push_back({bias.token, bias.bias});
    row.biases_end = static_cast<int32_t>(biases.size());
    if (!request.allowed.empty()) {
      row.mask_row = static_cast<int32_t>(masks.size() / request.allowed.size());
      masks.insert(masks.end(), request.allowed.begin(), request.allowed.end());
    }
    row.num_logprobs = static_cast<int32_t>(params.logprobs);
    if (request.draft >= 0) {
      const int64_t position = position_of(rows.size());
      row.draft = request.draft;
      row.uniform = uniform_at(params.seed, position, RandomStream::kResidual);
      row.accept_uniform = uniform_at(params.seed, position, RandomStream::kAccept);
      row.probs_begin = static_cast<int32_t>(probs.size());
      for (const TokenProb& entry : request.q) probs.push_back({entry.prob, entry.token});
      row.probs_end = static_cast<int32_t>(probs.size());
    }
    max_logprobs = std::max(max_logprobs, params.logprobs);
    rows.push_back(row);
  }
  const auto num_rows = static_cast<int64_t>(rows.size());
  DeviceArray<float> device_logits(logits);
  DeviceArray<SamplingRow> device_rows(rows);
  DeviceArray<SamplingCount> device_counts(counts);
  DeviceArray<SamplingBias> device_biases(biases);
  DeviceArray<uint64_t> device_masks(masks);
  DeviceArray<SamplingProb> device_probs(probs);
  DeviceArray<SampledDraft> drafts(num_rows);
  DeviceArray<int32_t> tokens(num_rows);
  DeviceArray<float> logprobs(num_rows);
  DeviceArray<int32_t> top_tokens(num_rows * max_logprobs);
  DeviceArray<float> top_logprobs(num_rows * max_logprobs);
  SamplingCudaArgs args;
  args.logits = device_logits.data();
  args.num_rows = num_rows;
  args.vocab_size = vocab_size;
  args.rows = device_rows.data();
  args.counts = device_counts.data();
  args.biases = device_biases.data();
  args.masks = device_masks.data();
  args.probs = device_probs.data();
  args.drafts = drafts.data();
  args.tokens = tokens.data();
  args.logprobs = logprobs.data();
  args.max_logprobs = max_logprobs;
  args.top_tokens = top_tokens.data();
  args.top_logprobs = top_logprobs.data();
  sample_cuda(args, nullptr);
  const auto all_tokens = tokens.host();
  const auto all_logprobs = logprobs.host();
  const auto all_top_tokens = top_tokens.host();
  const auto all_top_logprobs = top_logprobs.host();
  const auto all_drafts = drafts.host();
  std::vector<Sampled> result;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Sampled sampled = {all_tokens[i], all_logprobs[i], {}, all_drafts[i]};
    for (int64_t j = 0; j < requests[i].params.logprobs; ++j) {
      const auto idx = i * static_cast<std::size_t>(max_logprobs) + static_cast<std::size_t>(j);
      if (all_top_tokens[idx] < 0) break;
      sampled.top.push_back({all_top_tokens[idx], all_top_logprobs[idx]});
    }
    result.push_back(sampled);
  }
  EXPECT_EQ(device_logits.host().size(), logits.size());
  return result;
}

void expect_same(const std::vector<float>& logits, int64_t vocab_size,
                 const std::vector<Request>& requests) {
  const auto expected = sample_on_cpu(logits, vocab_size, requests);
  const auto actual = sample_on_gpu(logits, vocab_size, requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const SamplingParams& p = requests[i].params;
    SCOPED_TRACE(testing::Message()
                 << "row " << i << " vocab " << vocab_size << " temperature " << p.temperature
                 << " top_k " << p.top_k << " top_p " << p.top_p << " min_p " << p.min_p
                 << " logprobs " << p.logprobs << " seed " << p.seed);
    EXPECT_EQ(actual[i].token, expected[i].token);
    // Sums in double differ by far less than a float's last place, so at most its rounding does.
    const auto tolerance = [](float value) { return FLT_EPSILON * std::fabs(value) + FLT_MIN; };
    if (expected[i].token >= 0 && requests[i].draft >= 0 &&
        expected[i].token != requests[i].draft) {
      const SampledDraft& a = actual[i].rejected;
      const SampledDraft& e = expected[i].rejected;
      // At temperature 0 the CPU takes the C library's exponential.
      const float relative =
          p.temperature > 0 ? FLT_EPSILON : 1e-6f * (1 + std::min(std::fabs(e.gap), 1000.0f));
      EXPECT_NEAR(a.prob, e.prob, relative * e.prob + FLT_MIN);
      EXPECT_EQ(a.gap, e.gap);
      if (p.logprobs >= 0 && a.logprob != e.logprob) {  // both may be -infinity
        EXPECT_NEAR(a.logprob, e.logprob, tolerance(e.logprob));
      }
    }
    if (p.logprobs < 0 || expected[i].token < 0) continue;
    EXPECT_NEAR(actual[i].logprob, expected[i].logprob, tolerance(expected[i].logprob));
    ASSERT_EQ(actual[i].top.size(), expected[i].top.size());
    for (std::size_t j = 0; j < actual[i].top.size(); ++j) {
      EXPECT_EQ(actual[i].top[j].token, expected[i].top[j].token) << j;
      EXPECT_NEAR(actual[i].top[j].logprob, expected[i].top[j].logprob,
                  tolerance(expected[i].top[j].logprob));
    }
  }
}

// Rows of different character: wide, narrow, with many ties, flat, with holes.
std::vector<float> rows_of_logits(int64_t num_rows, int64_t vocab_size, uint64_t seed) {
  auto logits = normal_values(num_rows * vocab_size, seed, 3);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t i = 0; i < vocab_size; ++i) {
      float& x = logits[static_cast<std::size_t>(row * vocab_size + i)];
      switch (row % 7) {
        case 1:
          x *= 0.01f;
          break;
        case 2:
          x = std::round(x);  // 0 and -0 among them
          break;
        case 3:
          x = 1.5f;
          break;
        case 4:
          if (i % 3 == 0) x = -kInfinity;
          if (i % 17 == 5) x = std::nanf("");
          break;
        case 5:
          x = x * 4 - 300;
          break;
        default:
          break;
      }
    }
  }
  return logits;
}

SamplingParams random_params(uint64_t seed, int64_t vocab_size) {
  uint64_t draw = 0;
  const auto pick = [&](auto... choices) {
    const double values[] = {static_cast<double>(choices)...};
    const double u = uniform_at(seed, static_cast<int64_t>(draw++), RandomStream::kDraft);
    return values[static_cast<std::size_t>(u * static_cast<double>(sizeof...(choices)))];
  };
  SamplingParams params;
  params.seed = seed;
  params.temperature = pick(0.3, 0.7, 1, 1.5, 50, 0);
  params.top_p = pick(1, 1, 0.9, 0.5, 0.999, 0.01, 0);
  params.top_k = static_cast<int64_t>(
      pick(0, 0, -1, 1, 2, 40, 1000, static_cast<double>(vocab_size - 1),
           static_cast<double>(vocab_size / 2), static_cast<double>(vocab_size + 5)));
  params.min_p = pick(0, 0, 0.05, 0.3, 1);
  params.logprobs = static_cast<int64_t>(pick(-1, -1, 0, 1, 5, 20));
  if (pick(0, 0, 1) > 0) {
    params.presence_penalty = pick(0, 0.5, -1);
    params.frequency_penalty = pick(0, 0.25);
    params.repetition_penalty = pick(1, 1.3, 0.8);
  }
  return params;
}

std::vector<uint64_t> every_nth_token(int64_t vocab_size, int64_t n) {
  std::vector<uint64_t> allowed(static_cast<std::size_t>((vocab_size + 63) / 64));
  for (int64_t i = 0; i < vocab_size; i += n) {
    allowed[static_cast<std::size_t>(i / 64)] |= uint64_t{1} << (i % 64);
  }
  return allowed;
}

TEST(SamplingCuda, ChoosesTheSameTokensAsTheCpu) {
  LATHE_NEEDS_GPU();
  for (const int64_t vocab_size : {1, 17, 300, 4099, 32000, 128256, 262144}) {
    const int64_t num_rows = vocab_size > 100000 ? 70 : 210;
    const auto logits = rows_of_logits(num_rows, vocab_size, static_cast<uint64_t>(vocab_size));
    std::vector<Request> requests;
    for (int64_t row = 0; row < num_rows; ++row) {
      Request request;
      request.params = random_params(static_cast<uint64_t>(row * 1000 + vocab_size), vocab_size);
      const auto token = [&](int64_t i) {
        return static_cast<int32_t>((row * 7919 + i * i * 31) % vocab_size);
      };
      for (int64_t i = 0; i < 40; ++i) request.prompt.push_back(token(i));
      for (int64_t i = 20; i < 60; ++i) request.outputs.push_back(token(i));
      if (row % 4 == 1) {
        for (int64_t i = 0; i < 30; ++i) {
          request.params.logit_bias.push_back(
              {token(i / 2), static_cast<float>(i) - 10.0f});  // some tokens twice
        }
      }
      if (row % 5 == 2) request.allowed = every_nth_token(vocab_size, 1 + row % 11);
      requests.push_back(request);
    }
    expect_same(logits, vocab_size, requests);
  }
}

// Many random numbers on one distribution, for each order of the candidates. prepare(requests,
// logits) may add to the requests of one row each; expect(tokens) looks at the CPU's choices.
template <typename Prepare, typename Expect>
void for_every_random_number(Prepare prepare, Expect expect) {
  constexpr int64_t kVocab = 2000;
  constexpr int64_t kRows = 500;
  const auto one = normal_values(kVocab, 5, 2);
  std::vector<float> logits;
  for (int64_t i = 0; i < kRows; ++i) logits.insert(logits.end(), one.begin(), one.end());
  for (const double top_p : {1.0, 0.95, 0.4}) {
    for (const int64_t top_k : {0, 50}) {
      for (const double min_p : {0.0, 0.02}) {
        std::vector<Request> requests(static_cast<std::size_t>(kRows));
        for (Request& request : requests) {
          request.params.seed = 77;
          request.params.top_p = top_p;
          request.params.top_k = top_k;
          request.params.min_p = min_p;
        }
        prepare(requests, one);
        expect(requests, sample_on_cpu(logits, kVocab, requests));
        expect_same(logits, kVocab, requests);
      }
    }
  }
}

TEST(SamplingCuda, DrawsTheSameTokenForEveryRandomNumber) {
  LATHE_NEEDS_GPU();
  for_every_random_number([](auto&, const auto&) {},
                          [](const auto&, const std::vector<Sampled>& tokens) {
                            std::set<int32_t> distinct;
                            for (const Sampled& sampled : tokens) distinct.insert(sampled.token);
                            EXPECT_GT(distinct.size(), 5u);
                          });
}

// A draft's distribution: some tokens, ascending, with probabilities that add up to 1.
std::vector<TokenProb> random_distribution(Rng& rng, const std::vector<float>& logits,
                                           std::size_t begin, int64_t vocab_size, int64_t size) {
  std::vector<TokenProb> q;
  double total = 0;
  const int64_t step = std::max<int64_t>(1, vocab_size / size);
  for (int64_t token = static_cast<int64_t>(rng.below(static_cast<uint64_t>(step)));
       token < vocab_size && std::ssize(q) < kMaxDraftSupport; token += step) {
    const float logit = logits[begin + static_cast<std::size_t>(token)];
    const double near = std::isfinite(logit) ? std::exp(std::min(logit, 20.0f) * 0.5) : 1;
    q.push_back({static_cast<int32_t>(token), near + 1e-3});
    total += q.back().prob;
  }
  for (TokenProb& entry : q) entry.prob /= total;
  return q;
}

TEST(SamplingCuda, JudgesDraftsAsTheCpu) {
  LATHE_NEEDS_GPU();
  for (const int64_t vocab_size : {1, 17, 300, 4099, 32000, 128256}) {
    const int64_t num_rows = vocab_size > 100000 ? 70 : 210;
    auto logits = rows_of_logits(num_rows, vocab_size, static_cast<uint64_t>(vocab_size) + 1);
    std::vector<Request> requests;
    Rng rng(static_cast<uint64_t>(vocab_size));
    for (int64_t row = 0; row < num_rows; ++row) {
      Request request;
      const auto begin = static_cast<std::size_t>(row * vocab_size);
      request.params = random_params(static_cast<uint64_t>(row * 1000 + vocab_size), vocab_size);
      // Every third row: near the best one, which is mostly taken; else anything.
      request.draft = static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab_size)));
      if (row % 3 == 0) {
        const auto best =
            argmax(std::span(logits).subspan(begin, static_cast<std::size_t>(vocab_size)));
        if (best >= 0) request.draft = static_cast<int32_t>(best);
      }
      if (row % 2 == 0) {
        request.q = random_distribution(rng, logits, begin, vocab_size, 1 + row % 200);
        if (row % 3 != 0) {
          const std::size_t idx = rng.below(static_cast<uint64_t>(request.q.size()));
          request.draft = request.q[idx].token;
        }
      }
      float& logit = logits[begin + static_cast<std::size_t>(request.draft)];
      if (std::isnan(logit)) logit = -2;  // nobody drafts it
      if (row % 5 == 2) request.allowed = every_nth_token(vocab_size, 1 + row % 11);
      requests.push_back(request);
    }
    expect_same(logits, vocab_size, requests);
  }
}

// Accepted with min(p, q), redrawn from what is left.
TEST(SamplingCuda, JudgesADraftAsTheCpuForEveryRandomNumber) {
  LATHE_NEEDS_GPU();
  for_every_random_number(
      [](std::vector<Request>& requests, const std::vector<float>& logits) {
        Rng rng(3);
        for (std::size_t i = 0; i < requests.size(); ++i) {
          Request& request = requests[i];
          if (i % 4 != 0) request.q = random_distribution(rng, logits, 0, std::ssize(logits), 100);
          request.draft = request.q.empty() ? static_cast<int32_t>(argmax(logits))
                                            : request.q[rng.below(request.q.size())].token;
        }
      },
      [](const std::vector<Request>& requests, const std::vector<Sampled>& tokens) {
        int accepted = 0;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
          accepted += tokens[i].token == requests[i].draft;
        }
        EXPECT_GT(accepted, 5);
        EXPECT_LT(accepted, std::ssize(tokens) - 5);
      });
}

TEST(SamplingCuda, GreedyWithoutParameters) {
  LATHE_NEEDS_GPU();
  for (const int64_t vocab_size : {5, 1001, 128256}) {
    constexpr int64_t kRows = 9;
    constexpr int64_t kExtra = 3;  // rows that are not aligned
    auto logits = normal_values(kRows * (vocab_size + kExtra), 6);
    const auto stride = static_cast<std::size_t>(vocab_size + kExtra);
    const auto size = static_cast<std::size_t>(vocab_size);
    std::vector<int32_t> expected;
    for (std::size_t row = 0; row < kRows; ++row) {
      for (std::size_t i = size; i < stride; ++i) logits[row * stride + i] = 1e9f;
      float* first = logits.data() + row * stride;
      if (row == 1) first[size - 1] = first[size / 2] = 1e6f;  // a tie
      if (row == 2) first[0] = std::nanf("");
      if (row == 3) std::fill(first, first + size, -1e30f);
      if (row == 4) first[size / 3] = kInfinity;
      if (row == 5) std::fill(first, first + size, std::nanf(""));
      if (row == 6) std::fill(first, first + size, -kInfinity);
      expected.push_back(static_cast<int32_t>(argmax(std::span<const float>(first, size))));
    }
    DeviceArray<float> device(logits);
    DeviceArray<int32_t> tokens(kRows);
    SamplingCudaArgs args;
    args.logits = device.data();
    args.num_rows = kRows;
    args.vocab_size = vocab_size;
    args.stride = static_cast<int64_t>(stride);
    args.tokens = tokens.data();
    sample_cuda(args, nullptr);
    EXPECT_EQ(tokens.host(), expected);
  }
}

TEST(SamplingCuda, RejectsSizesItCannotTake) {
  SamplingCudaArgs args;
  for (const int64_t vocab_size : {int64_t{0}, kMaxSamplingVocab + 1}) {
    args.vocab_size = vocab_size;
    EXPECT_THROW(sample_cuda(args, nullptr), Error);
  }
  args.vocab_size = 100;
  args.stride = 99;
  EXPECT_THROW(sample_cuda(args, nullptr), Error);
  args.stride = 0;
  sample_cuda(args, nullptr);  // no rows: nothing to do
}

}  // namespace
}  // namespace lathe
