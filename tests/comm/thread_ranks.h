// Ranks as threads of one process, to test what they exchange without a launcher.
#pragma once
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "comm/communicator.h"

namespace lathe {

class ThreadRanks {
 public:
  explicit ThreadRanks(int size) : size_(size) {}

  // Runs body once for each rank, all at the same time.
  void run(const std::function<void(Communicator&)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size_; ++rank) {
      threads.emplace_back([&, rank] {
        Rank communicator(*this, rank);
        body(communicator);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  class Rank : public Communicator {
   public:
    Rank(ThreadRanks& ranks, int rank) : ranks_(ranks), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return ranks_.size_; }
    const std::string& host(int) const override { return ranks_.host_; }
    void send(int to, std::span<const std::byte> data) override {
      const std::lock_guard lock(ranks_.mutex_);
      ranks_.messages_[{rank_, to}].emplace_back(data.begin(), data.end());
      ranks_.changed_.notify_all();
    }
    void receive(int from, std::span<std::byte> data) override {
      std::unique_lock lock(ranks_.mutex_);
      auto& queue = ranks_.messages_[{from, rank_}];
      ranks_.changed_.wait(lock, [&] { return !queue.empty(); });
      LATHE_CHECK(queue.front().size() == data.size());
      std::copy(queue.front().begin(), queue.front().end(), data.begin());
      queue.pop_front();
    }
    void broadcast(int root, std::span<std::byte> data) override {
      if (rank_ != root) return receive(root, data);
      for (int to = 0; to < size(); ++to) {
        if (to != root) send(to, data);
      }
    }
    void barrier() override {
      for (int root = 0; root < size(); ++root) {
        std::byte nothing[1] = {};
        broadcast(root, nothing);
      }
    }
    [[noreturn]] void abort(int) override { std::abort(); }

   private:
    ThreadRanks& ranks_;
    const int rank_;
  };

  const int size_;
  const std::string host_ = "threads";
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<int, int>, std::deque<std::vector<std::byte>>> messages_;  // by from, to
};

}  // namespace lathe
