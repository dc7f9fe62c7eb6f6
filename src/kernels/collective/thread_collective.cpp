#include "kernels/collective/thread_collective.h"

#include <cstring>

#include "base/check.h"
#include "base/rank_threads.h"

namespace lathe {
namespace {

// What the ranks share.
struct Meeting {
  explicit Meeting(int size) : rendezvous(size), values(static_cast<std::size_t>(size)) {}
  Rendezvous rendezvous;
  std::vector<const float*> values;  // of each rank, during a call
};

class ThreadCollective final : public Collective {
 public:
  ThreadCollective(int rank, std::shared_ptr<Meeting> meeting)
      : rank_(rank), meeting_(std::move(meeting)) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_->values.size()); }

  // Rank r adds the r-th piece, of all, into all.
  void all_reduce_sum(void* values, int64_t count, DType dtype, CudaStream) override {
    LATHE_CHECK(dtype == DType::kF32);
    meet(static_cast<float*>(values));
    const int64_t end = count * (rank_ + 1) / size();
    for (int64_t i = count * rank_ / size(); i < end; ++i) {
      double sum = 0;
      for (const float* other : meeting_->values) sum += double{other[i]};
      for (const float* other : meeting_->values) {
        const_cast<float*>(other)[i] = static_cast<float>(sum);  // each came as float*
      }
    }
    meeting_->rendezvous.wait();
  }

  void send(const float* values, int64_t, CudaStream) override {
    meet(values);
    meeting_->rendezvous.wait();
  }
  void receive(std::span<const Part> parts, CudaStream) override {
    meet(nullptr);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      std::memcpy(parts[i].values, meeting_->values[i + 1],
                  static_cast<std::size_t>(parts[i].count) * sizeof(float));
    }
    meeting_->rendezvous.wait();
  }

  bool agree(bool mine) override { return meeting_->rendezvous.wait(mine); }
  void abort() noexcept override { meeting_->rendezvous.abort(); }

 private:
  void meet(const float* values) {
    meeting_->values[static_cast<std::size_t>(rank_)] = values;
    meeting_->rendezvous.wait();
  }

  int rank_;
  std::shared_ptr<Meeting> meeting_;
};

}  // namespace

std::vector<std::unique_ptr<Collective>> make_thread_collectives(int size) {
  const auto meeting = std::make_shared<Meeting>(size);
  std::vector<std::unique_ptr<Collective>> collectives;
  for (int rank = 0; rank < size; ++rank) {
    collectives.push_back(std::make_unique<ThreadCollective>(rank, meeting));
  }
  return collectives;
}

}  // namespace lathe
