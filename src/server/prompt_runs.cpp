#include "server/prompt_runs.h"

#include <condition_variable>
#include <mutex>
#include <optional>

#include "server/api_error.h"

namespace lathe {
namespace {

// Shared with the engine's thread; it outlives a waiter that gives up.
struct Waiting {
  std::mutex mutex;
  std::condition_variable done;
  std::vector<PromptPassResult> results;
  std::size_t num_done = 0;
  std::optional<Error> error;
};

}  // namespace

std::vector<PromptPassResult> run_prompts(const ApiContext& context, const ClientWatch& client,
                                          const std::vector<std::vector<int32_t>>& prompts,
                                          PromptPassJob::Wants wants, int64_t num_top) {
  const auto deadline = context.deadline();
  auto waiting = std::make_shared<Waiting>();
  waiting->results.resize(prompts.size());
  std::vector<std::shared_ptr<PromptPassJob>> jobs;
  const auto give_up = [&](ApiError error) {
    for (const auto& job : jobs) job->canceled = true;
    throw std::move(error);
  };
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto job = std::make_shared<PromptPassJob>();
    job->tokens = prompts[i];
    job->wants = wants;
    job->num_top = num_top;
    job->on_done = [waiting, i](PromptPassResult result) {
      const std::lock_guard lock(waiting->mutex);
      waiting->results[i] = std::move(result);
      ++waiting->num_done;
      waiting->done.notify_one();
    };
    job->on_error = [waiting](const Error& error) {
      const std::lock_guard lock(waiting->mutex);
      waiting->error = error;
      waiting->done.notify_one();
    };
    try {
      context.runner.add(job);
    } catch (const Error& error) {
      give_up(to_api_error(error));
    }
    jobs.push_back(std::move(job));
  }
  std::unique_lock lock(waiting->mutex);
  while (waiting->num_done < prompts.size()) {
    if (waiting->error) give_up(to_api_error(*waiting->error));
    if (client.is_gone()) give_up({499, "the client left"});
    if (!context.runner.is_healthy()) give_up({500, "the engine failed; see the server's log"});
    if (deadline && std::chrono::steady_clock::now() > *deadline) {
      give_up({504, "the request took longer than this server allows (--request-timeout)", "",
               "timeout"});
    }
    waiting->done.wait_for(lock, std::chrono::milliseconds(20));
  }
  return std::move(waiting->results);
}

}  // namespace lathe
