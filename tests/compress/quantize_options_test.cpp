#include "compress/quantize_options.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <iterator>
#include <set>

#include "base/error.h"

namespace lathe {
namespace {

QuantizeOptions plain() {
  return recommended_options(weight_format_from_name("mxfp4"), QuantizeMethod::kMrGptq,
                             ActivationFormat::kNone);
}

TEST(QuantizeOptions, NamesRoundTrip) {
  for (const char* name : {"mr-gptq", "gptq", "rtn", "smoothquant", "quarot", "awq"}) {
    EXPECT_EQ(quantize_method_name(quantize_method_from_name(name)), name);
  }
  for (const char* name : {"none", "diagonal", "pivot"}) {
    EXPECT_EQ(column_weights_name(column_weights_from_name(name)), name);
  }
  for (const char* name : {"absmax", "paper_grid", "exhaustive"}) {
    EXPECT_EQ(scale_search_name(scale_search_from_name(name)), name);
  }
  EXPECT_THROW(quantize_method_from_name("spinquant"), Error);
  EXPECT_THROW(column_weights_from_name(""), Error);
  EXPECT_THROW(scale_search_from_name("grid"), Error);
}

TEST(QuantizeOptions, EveryRecommendationCanBeStored) {
  for (const char* format : {"mxfp4", "nvfp4", "int4", "int8", "fp8", "mxfp8"}) {
    for (const char* method : {"mr-gptq", "gptq", "rtn", "smoothquant", "quarot", "awq"}) {
      for (const char* activations : {"none", "int8", "mxfp4", "nvfp4", "fp8", "mxfp8"}) {
        EXPECT_NO_THROW(check_options(
            recommended_options(weight_format_from_name(format), quantize_method_from_name(method),
                                activation_format_from_name(activations)),
            true))
            << format << " " << method << " " << activations;
      }
    }
  }
}

TEST(QuantizeOptions, ContradictionsAreRefused) {
  struct Case {
    const char* what;
    std::function<void(QuantizeOptions&)> change;
    ErrorCode code;
  };
  const ErrorCode kInvalid = ErrorCode::kInvalidArgument;
  const Case cases[] = {
      {"no rotation", [](auto& o) { o.hadamard.clear(); }, kInvalid},
      {"odd rotation", [](auto& o) { o.hadamard = {24}; }, kInvalid},
      {"no damping", [](auto& o) { o.damping.clear(); }, kInvalid},
      {"damping 0", [](auto& o) { o.damping = {0}; }, kInvalid},
      {"damping nan", [](auto& o) { o.damping = {std::nan("")}; }, kInvalid},
      {"no samples", [](auto& o) { o.samples = 0; }, kInvalid},
      {"no tokens", [](auto& o) { o.seq_len = 0; }, kInvalid},
      {"nothing to hold out",
       [](auto& o) {
         o.samples = 1;
         o.hadamard = {0, 32};
       },
       kInvalid},
      {"choosing with awq",
       [](auto& o) {
         o.method = QuantizeMethod::kAwq;
         o.hadamard = {0, 32};
       },
       kInvalid},
      {"norm", [](auto& o) { o.scales.norm = 0; }, kInvalid},
      {"alpha", [](auto& o) { o.smooth_alpha = 1.5; }, kInvalid},
      {"grid", [](auto& o) { o.awq_grid = 0; }, kInvalid},
      {"nvint4", [](auto& o) { o.format = weight_format_from_name("nvint4"); },
       ErrorCode::kUnsupported},
      {"mxint4", [](auto& o) { o.format = weight_format_from_name("mxint4"); },
       ErrorCode::kUnsupported},
      {"thirds", [](auto& o) { o.scales.mx_rule = MxScaleRule::kAbsmaxX3; },
       ErrorCode::kUnsupported},
      {"fitted", [](auto& o) { o.format = weight_format_from_name("mxfp4-fitted"); },
       ErrorCode::kUnsupported},
  };
  for (const Case& c : cases) {
    QuantizeOptions options = plain();
    c.change(options);
    try {
      check_options(options, true);
      ADD_FAILURE() << c.what;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), c.code) << c.what << ": " << error.what();
    }
  }
}

// A run must not be continued with other settings, so each one shows in the text.
TEST(QuantizeOptions, EverySettingShowsInItsText) {
  const std::function<void(QuantizeOptions&)> changes[] = {
      [](auto&) {},
      [](auto& o) { o.format = weight_format_from_name("nvfp4"); },
      [](auto& o) { o.method = QuantizeMethod::kGptq; },
      [](auto& o) { o.activations = ActivationFormat::kFp8; },
      [](auto& o) { o.hadamard = {0}; },
      [](auto& o) {
        o.hadamard = {0, 32};
      },
      [](auto& o) { o.damping = {0.02}; },
      [](auto& o) { o.order = ColumnOrder::kNatural; },
      [](auto& o) { o.scales.search = ScaleSearch::kAbsmax; },
      [](auto& o) { o.scales.mx_rule = MxScaleRule::kCeil; },
      [](auto& o) { o.scales.norm = 2.4; },
      [](auto& o) { o.scales.alternate_global = false; },
      [](auto& o) { o.column_weights = ColumnWeights::kPivot; },
      [](auto& o) { o.smooth_alpha = 0.5; },
      [](auto& o) { o.awq_grid = 10; },
      [](auto& o) { o.sequential = true; },
      [](auto& o) { o.refinements = 7; },
      [](auto& o) { o.sweeps = 7; },
      [](auto& o) { o.min_expert_tokens = 1; },
      [](auto& o) { o.samples = 1; },
      [](auto& o) { o.seq_len = 1; },
      [](auto& o) { o.seed = 1; },
  };
  std::set<std::string> texts;
  for (const auto& change : changes) {
    QuantizeOptions options = plain();
    options.column_weights = ColumnWeights::kNone;
    change(options);
    texts.insert(settings_text(options));
  }
  EXPECT_EQ(texts.size(), std::size(changes));
}

}  // namespace
}  // namespace lathe
