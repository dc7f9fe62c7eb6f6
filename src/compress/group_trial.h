// One way to quantize a group of linear layers that share an input, and what came of it: what the
// CPU's and the GPU's quantize_group() have in common.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "compress/linear_group.h"

namespace lathe {

struct GroupTrial {
  int64_t hadamard = 0;
  double damping = 0;
  int escalations = 0;
  int64_t dead_columns = 0;
  std::vector<double> errors;      // squared, per task
  std::vector<double> rtn_errors;  // empty: not measured
  std::vector<double> energies;

  double total() const;
};

// The rotations of the options that divide k, in order. Throws kInvalidArgument when there is none;
// a single one is checked as check_hadamard() does.
std::vector<int64_t> usable_rotations(const QuantizeOptions& options, int64_t k,
                                      const std::string& module);

// One per task, from the trial that was taken.
std::vector<LinearReport> group_reports(std::span<const LinearTask> tasks, const GroupTrial& trial,
                                        const QuantizeOptions& options, bool use_gptq,
                                        int64_t tokens);

}  // namespace lathe
