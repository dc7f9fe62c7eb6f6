// Linear layers at up to 16 rows of x: what is common to the weight formats. See
// small_linear_sm90.h for the method.
#pragma once
#include <cstdint>
#include <string>

namespace lathe {

inline constexpr int kSmallLinearMaxRows = 16;

// What is chosen by the sizes alone. The bits of a row of y depend on none of it.
struct SmallLinearConfig {
  int rows = 8;    // of x, padded: 8 or 16
  int strips = 1;  // of 16 rows of W that a block multiplies at once: 1, 2 or 4
  int blocks = 1;  // that walk over W
  bool operator==(const SmallLinearConfig&) const = default;
};
std::string to_string(const SmallLinearConfig& config);

// Blocks that a multiprocessor takes at the same time.
inline constexpr int kSmallLinearResidents = 2;

// The config with so many strips. m = 1..16.
SmallLinearConfig small_linear_config(int64_t m, int64_t n, int strips, int num_sms);
SmallLinearConfig choose_small_linear_config(int64_t m, int64_t n, int num_sms);

}  // namespace lathe
