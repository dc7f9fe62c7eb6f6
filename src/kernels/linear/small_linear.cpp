#include "kernels/linear/small_linear.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace lathe {
namespace {

constexpr int kMaxShared = 227 * 1024;
constexpr int kGroups = 4, kChunkTiles = 4;

// As small_linear_sm90.h lays shared memory out, without the ring.
int64_t fixed_bytes(int rows, int cluster, int64_t x_tiles) {
  const int exchange = cluster == 1 ? 0 : 2 * rows * 64 * 4;
  const int sums = (rows <= 16 ? 2 : 1) * (kGroups * rows * 68 * 4 + exchange);
  return 1024 + x_tiles * rows * 128 + sums + 64 * 16 + 64 + rows * 4;
}

}  // namespace

std::string to_string(const SmallLinearConfig& config) {
  return str("rows ", config.rows, " cluster ", config.cluster, " clusters ", config.num_clusters,
             " passes ", config.passes, " slots ", config.slots);
}

SmallLinearCandidate small_linear_candidate(int64_t m, int64_t n, int64_t k, int tile_bytes,
                                            int num_sms, int cluster) {
  const int64_t panels = (n + 63) / 64, k_tiles = k / 64;
  const int rows = m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64;
  const int slot_bytes = kChunkTiles * tile_bytes;
  SmallLinearCandidate candidate{{}, std::numeric_limits<double>::infinity()};
  // Larger clusters must fit into groups of 16 or 18 multiprocessors.
  const int available = cluster <= 2 ? num_sms / cluster : num_sms / 16 * 16 / cluster;
  if (available < 1) return candidate;
  const auto num_clusters = static_cast<int>(std::min<int64_t>(available, panels));
  const int64_t rounds = (panels + num_clusters - 1) / num_clusters;
  for (int passes = 1; passes <= 256; passes *= 2) {
    const int64_t x_tiles = (k_tiles + cluster * passes - 1) / (cluster * passes) + 1;
    const auto slots = static_cast<int>(
        std::min<int64_t>((kMaxShared - fixed_bytes(rows, cluster, x_tiles)) / slot_bytes, 16));
    if (slots < 5) continue;
    const auto tiles = static_cast<double>((k_tiles + cluster - 1) / cluster);
    candidate.config = {rows, cluster, num_clusters, passes, slots};
    // Tiles and the ends of panels, x from the L2 cache, what several passes cost, too small a
    // ring.
    candidate.time = static_cast<double>(rounds) * (tiles + 3.0 * passes) + 0.04 * rows * tiles +
                     8.0 * (passes - 1);
    // Measured on H100 and H200: clusters of 4 and 8 take 2 to 3 times as long a tile as smaller
    // ones, probably because not all of them are resident at once.
    if (cluster > 2) candidate.time *= 2.4;
    if (slots * slot_bytes < 48 * 1024) candidate.time *= 1.15;
    break;
  }
  return candidate;
}

SmallLinearConfig choose_small_linear_config(int64_t m, int64_t n, int64_t k, int tile_bytes,
                                             int num_sms) {
  SmallLinearCandidate best{{}, std::numeric_limits<double>::infinity()};
  for (const int cluster : {1, 2, 4, 8}) {
    const auto candidate = small_linear_candidate(m, n, k, tile_bytes, num_sms, cluster);
    if (candidate.time < best.time) best = candidate;
  }
  return best.config;
}

int64_t small_linear_workspace_bytes(const SmallLinearConfig& config, int64_t n) {
  return config.passes == 1 ? 0 : int64_t{config.rows} * ((n + 63) / 64 * 64) * 4;
}

}  // namespace lathe
