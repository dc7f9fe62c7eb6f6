#include "server/engine_runner.h"

#include <chrono>

namespace lathe {
namespace {

// Rows of a PromptPass between two steps: while others decode, about as long as one of their steps.
constexpr int64_t kRowsWhileBusy = 64;
constexpr int64_t kRowsWhileIdle = 512;

}  // namespace

EngineRunner::EngineRunner(Engine& engine, PromptPass& prompt_pass, IdleWork* idle_work)
    : engine_(engine),
      prompt_pass_(prompt_pass),
      idle_work_(idle_work),
      thread_([this] { run(); }) {}

EngineRunner::~EngineRunner() {
  stopping_ = true;
  engine_.abort(0);  // no request has this id: it only wakes the thread
  thread_.join();
}

void EngineRunner::add(std::shared_ptr<PromptPassJob> job) {
  prompt_pass_.add(std::move(job));
  engine_.abort(0);
}

void EngineRunner::run() {
  try {
    while (!stopping_) {
      if (!prompt_pass_.has_work()) engine_.wait_for_work(std::chrono::milliseconds(200));
      const bool is_busy = engine_.step();
      prompt_pass_.step(is_busy ? kRowsWhileBusy : kRowsWhileIdle);
      if (idle_work_ != nullptr) idle_work_->between_steps(prompt_pass_.has_work());
    }
  } catch (...) {
    is_healthy_ = false;
  }
}

}  // namespace lathe
