#include "server/choices.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>

#include "base/error.h"

namespace lathe {

// Between the engine's thread, which fills it, and the connection's, which empties it. The
// callbacks hold it, so it lives as long as the engine knows one of the requests.
struct Choices::Channel {
  Channel() : event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event < 0) fail(ErrorCode::kOutOfMemory, "no descriptor left for a request");
  }
  ~Channel() { close(event); }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void wake() const {
    const uint64_t one = 1;
    (void)!write(event, &one, sizeof one);
  }

  const int event;
  std::mutex mutex;
  std::deque<ChoiceNews> news;
  std::vector<RequestId> ids;          // of the choices that were started
  std::vector<Request> waiting;        // [choice]; those without on_output are started or done
  bool aborted = false;                // nothing more may be started
  std::atomic<bool> lost_news{false};  // no memory for news: the request cannot be answered
};

namespace {

ChoiceNews copy_of(const RequestOutput& output, int64_t choice, bool with_ids) {
  ChoiceNews news;
  news.choice = choice;
  news.text = output.text;
  news.num_tokens = static_cast<int64_t>(output.token_ids.size());
  if (with_ids) news.token_ids.assign(output.token_ids.begin(), output.token_ids.end());
  for (const SampledToken& token : output.logprobs) {
    news.tokens.push_back({token.token, token.logprob, {token.top.begin(), token.top.end()}});
  }
  news.finish_reason = output.finish_reason;
  if (output.error != nullptr) {
    news.error = output.error->what();
    news.error_code = output.error->code();
  }
  news.usage = output.usage;
  return news;
}

double seconds(Choices::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Choices::Choices(EngineRunner& runner, ServerMetrics& metrics, ChoicesRequest request,
                 const ClientWatch& client, std::optional<Clock::time_point> deadline)
    : runner_(runner),
      metrics_(metrics),
      client_(client),
      deadline_(deadline),
      shadow_(request.shadow),
      n_(request.n),
      channel_(std::make_shared<Channel>()) {
  const auto num_prompts = static_cast<int64_t>(request.prompts.size());
  num_choices_ = num_prompts * n_;
  progress_.resize(static_cast<std::size_t>(num_choices_));
  channel_->waiting.resize(static_cast<std::size_t>(num_choices_));
  Engine& engine = runner.engine();
  for (int64_t choice = 0; choice < num_choices_; ++choice) {
    Request& made = channel_->waiting[static_cast<std::size_t>(choice)];
    made.prompt = request.prompts[static_cast<std::size_t>(choice / n_)];
    made.params = request.params;
    made.params.seed += static_cast<uint64_t>(choice % n_);
    made.speculative = request.speculative;
    if (request.make_constraint) made.constraint = request.make_constraint();
    std::unique_ptr<ShadowJob>& shadow = progress_[static_cast<std::size_t>(choice)].shadow;
    shadow = shadow_job(made);
    if (shadow != nullptr) shadow->make_constraint = request.make_constraint;
    const bool leads = choice % n_ == 0 && n_ > 1;
    const int64_t end_of_group = choice + n_;
    made.on_output = [channel = channel_, &engine, &metrics, choice, leads, end_of_group,
                      with_ids = shadow != nullptr,
                      followed = false](const RequestOutput& output) mutable {
      try {
        std::vector<Request> followers;
        const std::lock_guard lock(channel->mutex);
        channel->news.push_back(copy_of(output, choice, with_ids));
        // An error of the first (no room for its prompt) is an error of the others too: they start
        // all the same and report it themselves.
        if (leads && !followed && !channel->aborted) {
          followed = true;
          for (int64_t i = choice + 1; i < end_of_group; ++i) {
            Request& next = channel->waiting[static_cast<std::size_t>(i)];
            channel->ids.push_back(engine.add_request(std::move(next)));
            metrics.choices_started.add();
          }
        }
      } catch (...) {
        channel->lost_news = true;
      }
      channel->wake();
    };
  }
  const std::lock_guard lock(channel_->mutex);
  try {
    for (int64_t choice = 0; choice < num_choices_; choice += n_) {
      channel_->ids.push_back(
          engine.add_request(std::move(channel_->waiting[static_cast<std::size_t>(choice)])));
      metrics.choices_started.add();
    }
  } catch (...) {
    channel_->aborted = true;
    channel_->waiting.clear();
    for (const RequestId id : channel_->ids) engine.abort(id);
    for (std::size_t i = 0; i < channel_->ids.size(); ++i) {
      metrics.count_finished(FinishReason::kAbort);
    }
    throw;
  }
}

Choices::~Choices() { abort_all(); }

void Choices::abort_all() {
  const std::lock_guard lock(channel_->mutex);
  if (channel_->aborted) return;
  channel_->aborted = true;
  channel_->waiting.clear();  // their callbacks hold the channel that holds them
  if (num_ended_ == num_choices_) return;
  for (const RequestId id : channel_->ids) runner_.engine().abort(id);
  // Started and not ended: what the engine says of them is not waited for.
  const int64_t open = static_cast<int64_t>(channel_->ids.size()) - num_ended_;
  for (int64_t i = 0; i < open; ++i) metrics_.count_finished(FinishReason::kAbort);
}

Choices::Wait Choices::next(ChoiceNews& news) {
  for (;;) {
    if (num_ended_ == num_choices_) return Wait::kDone;
    // Before news that wait already: a fast engine and a slow reader may have some at all times.
    Wait reason = Wait::kNews;
    if (client_.is_gone()) reason = Wait::kClientGone;
    if (deadline_ && Clock::now() >= *deadline_) reason = Wait::kTimeout;
    if (reason != Wait::kNews) {
      abort_all();
      return reason;
    }
    bool has_news = false;
    {
      const std::lock_guard lock(channel_->mutex);
      if (channel_->aborted) return Wait::kClientGone;
      has_news = !channel_->news.empty();
      if (has_news) {
        news = std::move(channel_->news.front());
        channel_->news.pop_front();
      }
    }
    if (has_news) {
      note(news);
      return Wait::kNews;
    }
    if (channel_->lost_news || !runner_.is_healthy()) {
      abort_all();
      return Wait::kEngineLost;
    }
    pollfd fds[2] = {{channel_->event, POLLIN, 0}, {client_.fd(), POLLRDHUP, 0}};
    int64_t timeout_ms = 250;  // looks after the engine's health
    if (deadline_) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline_ - Clock::now());
      timeout_ms = std::clamp<int64_t>(left.count(), 0, timeout_ms);
    }
    if (poll(fds, 2, static_cast<int>(timeout_ms)) > 0 && (fds[0].revents & POLLIN) != 0) {
      uint64_t count = 0;
      (void)!read(channel_->event, &count, sizeof count);
    }
  }
}

void Choices::note(const ChoiceNews& news) {
  Progress& progress = progress_[static_cast<std::size_t>(news.choice)];
  progress.usage = news.usage;
  if (progress.shadow != nullptr) note_shadow(progress, news);
  const Clock::time_point now = Clock::now();
  const double queued = news.usage.queue_seconds;
  if (news.num_tokens > 0) {
    if (!progress.first_token) {
      progress.first_token = now;
      metrics_.time_to_first_token.observe(seconds(now - start_));
    } else {
      metrics_.inter_token_latency.observe(seconds(now - *progress.last_token) /
                                           static_cast<double>(news.num_tokens));
    }
    progress.last_token = now;
  }
  if (!news.finish_reason || progress.ended) return;
  progress.ended = true;
  ++num_ended_;
  metrics_.count_finished(*news.finish_reason);
  const double total = seconds(now - start_);
  const auto generated = static_cast<double>(news.usage.completion_tokens);
  metrics_.e2e_latency.observe(total);
  metrics_.queue_time.observe(queued);
  metrics_.inference_time.observe(total - queued);
  metrics_.prompt_tokens.observe(static_cast<double>(news.usage.prompt_tokens));
  metrics_.generation_tokens.observe(generated);
  note_longest(news.choice);
  if (!progress.first_token) return;
  const double decode = seconds(now - *progress.first_token);
  metrics_.prefill_time.observe(total - queued - decode);
  metrics_.decode_time.observe(decode);
  if (generated > 1) metrics_.time_per_output_token.observe(decode / (generated - 1));
}

// Of the n choices of a prompt, when the last of them has ended.
void Choices::note_longest(int64_t choice) {
  const std::span<const Progress> siblings = std::span<const Progress>(progress_).subspan(
      static_cast<std::size_t>(choice / n_ * n_), static_cast<std::size_t>(n_));
  int64_t longest = 0;
  for (const Progress& progress : siblings) {
    if (!progress.ended) return;
    longest = std::max(longest, progress.usage.completion_tokens);
  }
  metrics_.max_generation_tokens.observe(static_cast<double>(longest));
}

std::unique_ptr<ShadowJob> Choices::shadow_job(const Request& request) const {
  if (shadow_ == nullptr || !(request.speculative.judge_threshold > 0)) return nullptr;
  if (!shadow_->wants(request.params)) return nullptr;
  auto job = std::make_unique<ShadowJob>();
  job->prompt = request.prompt;
  job->params = request.params;
  job->threshold = request.speculative.judge_threshold;
  return job;
}

void Choices::note_shadow(Progress& progress, const ChoiceNews& news) {
  ShadowJob& job = *progress.shadow;
  job.text += news.text;
  job.token_ids.insert(job.token_ids.end(), news.token_ids.begin(), news.token_ids.end());
  if (!news.finish_reason) return;
  job.judge_accepted = news.usage.speculation.judge_accepted;
  const bool is_whole =
      *news.finish_reason == FinishReason::kStop || *news.finish_reason == FinishReason::kLength;
  if (is_whole) shadow_->submit(std::move(job));
  progress.shadow.reset();
}

Usage Choices::usage() const {
  Usage sum;
  for (int64_t choice = 0; choice < num_choices_; ++choice) {
    const Usage& usage = progress_[static_cast<std::size_t>(choice)].usage;
    sum.completion_tokens += usage.completion_tokens;
    sum.speculation += usage.speculation;
    if (choice % n_ != 0) continue;  // the others share its prompt
    sum.prompt_tokens += usage.prompt_tokens;
    sum.cached_tokens += usage.cached_tokens;
  }
  return sum;
}

}  // namespace lathe
