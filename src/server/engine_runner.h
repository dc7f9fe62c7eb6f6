// The thread that runs the engine. Requests come from the connections' threads; steps happen here
// and nowhere else.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "engine/engine.h"
#include "engine/prompt_pass.h"
#include "server/idle_work.h"

namespace lathe {

class EngineRunner {
 public:
  // Borrows all. Starts at once. idle_work: null: none.
  EngineRunner(Engine& engine, PromptPass& prompt_pass, IdleWork* idle_work = nullptr);
  ~EngineRunner();  // after the step in progress
  EngineRunner(const EngineRunner&) = delete;
  EngineRunner& operator=(const EngineRunner&) = delete;

  Engine& engine() { return engine_; }
  // Queues a job and wakes the thread. Throws what PromptPass::add() throws.
  void add(std::shared_ptr<PromptPassJob> job);
  const PromptPass& prompt_pass() const { return prompt_pass_; }
  // False once a step has failed beyond what the engine can keep to one request (a lost GPU): no
  // request will be answered any more.
  bool is_healthy() const { return is_healthy_; }

 private:
  void run();

  Engine& engine_;
  PromptPass& prompt_pass_;
  IdleWork* idle_work_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> is_healthy_{true};
  std::thread thread_;
};

}  // namespace lathe
