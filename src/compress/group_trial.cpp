#include "compress/group_trial.h"

#include "base/error.h"
#include "quant/hadamard.h"

namespace lathe {

double GroupTrial::total() const {
  double sum = 0;
  for (const double error : errors) sum += error;
  return sum;
}

std::vector<int64_t> usable_rotations(const QuantizeOptions& options, int64_t k,
                                      const std::string& module) {
  if (options.hadamard.size() == 1) {
    check_hadamard(options.hadamard[0], k);
    return options.hadamard;
  }
  std::vector<int64_t> usable;
  for (const int64_t block : options.hadamard) {
    if (block == 0 || k % block == 0) usable.push_back(block);
  }
  if (usable.empty()) {
    fail(ErrorCode::kInvalidArgument, module, ": none of the rotations divides its ", k,
         " input features; add 0 (none) to the list");
  }
  return usable;
}

std::vector<LinearReport> group_reports(std::span<const LinearTask> tasks, const GroupTrial& trial,
                                        const QuantizeOptions& options, bool use_gptq,
                                        int64_t tokens) {
  std::vector<LinearReport> reports;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    LinearReport report;
    report.module = tasks[i].module;
    report.rows = tasks[i].weight.dim(0);
    report.cols = tasks[i].weight.dim(1);
    report.tokens = tokens;
    report.hadamard = trial.hadamard;
    report.damping = trial.damping;
    report.escalations = trial.escalations;
    report.dead_columns = trial.dead_columns;
    report.rtn_fallback = options.uses_gptq() && !use_gptq;
    const double energy = trial.energies[i];
    report.error = energy > 0 ? trial.errors[i] / energy : 0;
    if (!trial.rtn_errors.empty()) {
      report.rtn_error = energy > 0 ? trial.rtn_errors[i] / energy : 0;
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace lathe
