#include "server/metrics.h"

#include <gtest/gtest.h>

#include "server/server_metrics.h"

namespace lathe {
namespace {

TEST(Metrics, WritesPrometheusText) {
  Histogram histogram({0.001, 0.5, 2});
  for (const double value : {0.00048828125, 0.0009765625, 0.25, 2.0, 100.0})
    histogram.observe(value);
  MetricText out;
  out.family("h", "histogram", "Help.");
  out.histogram("h", {{"model_name", "a\"b\\c\nd"}}, histogram);
  out.family("c", "counter", "Help.");
  out.sample("c", {}, 12345678901234.0);
  EXPECT_EQ(out.text(),
            "# HELP h Help.\n# TYPE h histogram\n"
            "h_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"0.001\"} 2\n"
            "h_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"0.5\"} 3\n"
            "h_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"2\"} 4\n"
            "h_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"+Inf\"} 5\n"
            "h_sum{model_name=\"a\\\"b\\\\c\\nd\"} 102.25146484375\n"
            "h_count{model_name=\"a\\\"b\\\\c\\nd\"} 5\n"
            "# HELP c Help.\n# TYPE c counter\nc 12345678901234\n");
}

TEST(Metrics, BucketsFollow125) {
  EXPECT_EQ(buckets_1_2_5(100), (std::vector<double>{1, 2, 5, 10, 20, 50, 100}));
  EXPECT_EQ(buckets_1_2_5(3), (std::vector<double>{1, 2}));
  EXPECT_EQ(buckets_1_2_5(INT64_MAX).size(), 57u);  // up to 5e18
}

TEST(ServerMetrics, TheCacheByKindOfBlock) {
  const ServerMetrics metrics("model", 1024);
  EngineStats stats;
  stats.cache_blocks = {.live = 10, .coded = 100};
  stats.free_cache_blocks = {.live = 4, .coded = 30};
  stats.running_cache_blocks = {.live = 5, .coded = 75};
  stats.cache_block_bytes = {.live = 3000, .coded = 250};
  stats.cache_block_numbers = 1000;
  stats.parking.piece_tokens = 128;
  stats.parking.piece_bytes = 700;
  stats.parking.live_piece_bytes = 5600;
  const std::string text = metrics.text(stats, HttpServerStats{}, 16);
  for (const auto& [name, value] :
       {std::pair<const char*, const char*>{"vllm:kv_cache_usage_perc", "0.75"},
        {"lathe_cache_blocks", "10"},
        {"lathe_cache_free_blocks", "4"},
        {"lathe_cache_coded_blocks", "100"},
        {"lathe_cache_coded_free_blocks", "30"}}) {
    const std::string line =
        std::string("\n") + name + "{engine=\"0\",model_name=\"model\"} " + value + "\n";
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
  for (const auto& [name, label, value] :
       {std::tuple{"lathe_cache_used_bytes", "kind=\"live\"", "18000"},
        {"lathe_cache_used_bytes", "kind=\"coded\"", "17500"},
        {"lathe_cache_bits_per_number", "kind=\"live\"", "24"},
        {"lathe_cache_bits_per_number", "kind=\"coded\"", "2"},
        {"lathe_parked_piece_bytes", "as=\"parked\"", "700"},
        {"lathe_parked_piece_bytes", "as=\"live\"", "5600"}}) {
    const std::string line = std::string("\n") + name + "{engine=\"0\",model_name=\"model\"," +
                             label + "} " + value + "\n";
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
}

TEST(ServerMetrics, CountersAddUp) {
  ServerMetrics metrics("model", 1024);
  metrics.choices_started.add(5);
  metrics.count_finished(FinishReason::kStop);
  metrics.count_finished(FinishReason::kAbort);
  metrics.count_http("/health", 200);
  metrics.count_http("/health", 200);
  const std::string text = metrics.text(EngineStats{}, HttpServerStats{}, 16);
  for (const char* line : {"lathe_choices_started_total{engine=\"0\",model_name=\"model\"} 5\n",
                           "lathe_choices_open{engine=\"0\",model_name=\"model\"} 3\n",
                           "vllm:request_success_total{engine=\"0\",model_name=\"model\",finished_"
                           "reason=\"abort\"} 1\n",
                           "vllm:request_success_total{engine=\"0\",model_name=\"model\",finished_"
                           "reason=\"length\"} 0\n",
                           "lathe_http_requests_total{path=\"/health\",status=\"200\"} 2\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
}

}  // namespace
}  // namespace lathe
