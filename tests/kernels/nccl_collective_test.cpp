// NCCL between two GPUs: sums in both types, parts for rank 0, the same from a CUDA graph, and a
// failed rank. Skips with fewer GPUs.
#include "kernels/collective/nccl_collective.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "base/rank_threads.h"
#include "kernels/cuda_context.h"
#include "support/kernel_cases.h"
#include "tensor/cuda_check.h"
#include "tensor/float16.h"

namespace lathe {
namespace {

constexpr int kRanks = 2;
constexpr int64_t kCount = 8192 * 3;

struct Rank {
  std::unique_ptr<Collective> collective;
  std::unique_ptr<CudaContext> context;
};

class NcclCollectives : public testing::Test {
 protected:
  void SetUp() override {
    try {
      auto collectives = make_nccl_collectives(0, kRanks);
      for (auto& collective : collectives) ranks_.push_back({std::move(collective), nullptr});
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kDevice && error.code() != ErrorCode::kUnsupported) throw;
      GTEST_SKIP() << error.what();
    }
    run([](Rank& rank) { rank.context = std::make_unique<CudaContext>(rank.collective->rank()); });
  }
  void TearDown() override {
    if (ranks_.empty()) return;
    run([](Rank& rank) {
      rank.context = nullptr;
      rank.collective = nullptr;
    });
  }

  template <typename Body>
  void run(const Body& body) {
    threads_.run([&](int rank) { body(ranks_[static_cast<std::size_t>(rank)]); },
                 [&] { ranks_[0].collective->abort(); });
  }

  std::vector<Rank> ranks_;
  RankThreads threads_{kRanks};
};

// 1 to 8, different for each rank and place; with their sums exact in bf16.
float value_at(int rank, int64_t i) { return static_cast<float>(1 + (i + 3 * rank) % 8); }

TEST_F(NcclCollectives, SumsAreTheSameOnAllRanks) {
  for (const int64_t count : {int64_t{1}, int64_t{8192}, kCount}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(std::string(dtype_name(dtype)) + " " + std::to_string(count));
      run([&](Rank& rank) {
        rank.context->use();
        const int me = rank.collective->rank();
        const auto size = static_cast<std::size_t>(count);
        std::vector<float> f32(size);
        std::vector<uint16_t> bf16(size);
        for (std::size_t i = 0; i < size; ++i) {
          f32[i] = value_at(me, static_cast<int64_t>(i));
          bf16[i] = bf16_from_float(f32[i]);
        }
        const void* from =
            dtype == DType::kF32 ? static_cast<const void*>(f32.data()) : bf16.data();
        DeviceBuffer values = DeviceBuffer::from_host(from, count * dtype_size(dtype));
        rank.collective->all_reduce_sum(values.data(), count, dtype, rank.context->stream());
        void* to = dtype == DType::kF32 ? static_cast<void*>(f32.data()) : bf16.data();
        values.to_host(to, count * dtype_size(dtype), rank.context->stream());
        int64_t num_wrong = 0;
        for (std::size_t i = 0; i < size; ++i) {
          const float sum = dtype == DType::kF32 ? f32[i] : float_from_bf16(bf16[i]);
          const auto at = static_cast<int64_t>(i);
          num_wrong += sum != value_at(0, at) + value_at(1, at) ? 1 : 0;
        }
        EXPECT_EQ(num_wrong, 0) << "rank " << me;
      });
    }
  }
}

TEST_F(NcclCollectives, AGraphRepeatsSumsAndParts) {
  run([&](Rank& rank) {
    rank.context->use();
    const int me = rank.collective->rank();
    const CudaStream stream = rank.context->stream();
    std::vector<float> ones(kCount, 1.0f);
    DeviceBuffer values = DeviceBuffer::from_host(ones.data(), kCount * 4);
    DeviceBuffer received = DeviceBuffer::from_host(ones.data(), kCount * 4);
    const auto step = [&] {
      rank.collective->all_reduce_sum(values.data(), kCount, DType::kF32, stream);
      if (me == 0) {
        const Collective::Part part = {received.as<float>(), kCount};
        rank.collective->receive({&part, 1}, stream);
      } else {
        rank.collective->send(values.as<float>(), kCount, stream);
      }
    };
    step();
    ASSERT_TRUE(rank.collective->agree(true));
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    step();
    cudaGraph_t graph = nullptr;
    cuda_check(cudaStreamEndCapture(stream, &graph), "capturing");
    cudaGraphExec_t instance = nullptr;
    cuda_check(cudaGraphInstantiate(&instance, graph, 0), "making a graph");
    for (int i = 0; i < 5; ++i) cuda_check(cudaGraphLaunch(instance, stream), "replaying");
    std::vector<float> sums(kCount), parts(kCount);
    values.to_host(sums.data(), kCount * 4, stream);
    received.to_host(parts.data(), kCount * 4, stream);
    EXPECT_EQ(sums, std::vector<float>(kCount, 64.0f)) << "doubled six times";
    if (me == 0) {
      EXPECT_EQ(parts, sums);
    }
    cudaGraphExecDestroy(instance);
    cudaGraphDestroy(graph);
  });
}

TEST_F(NcclCollectives, AFailedRankEndsWhatTheOtherWaitsFor) {
  EXPECT_THROW(run([&](Rank& rank) {
                 rank.context->use();
                 DeviceBuffer values(kCount * 4);
                 if (rank.collective->rank() == 1) {
                   // The other waits on its GPU by now.
                   std::this_thread::sleep_for(std::chrono::milliseconds(300));
                   fail(ErrorCode::kOutOfMemory, "rank 1");
                 }
                 rank.collective->all_reduce_sum(values.data(), kCount, DType::kF32,
                                                 rank.context->stream());
                 rank.context->synchronize();
               }),
               Error);
  EXPECT_THROW(run([](Rank& rank) { rank.collective->agree(true); }), Error);
}

}  // namespace
}  // namespace lathe
