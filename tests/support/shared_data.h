// The one place where tests learn about data outside the project: reference data (golden vectors)
// and real models. Users have neither; a test that needs them skips with the reason.
#pragma once
#include <optional>
#include <string>

namespace lathe {

// A committed file under tests/golden/.
std::string golden_path(const std::string& relative);
// A file of the full reference data: $LATHE_SHARED, or ../shared beside the checkout.
std::optional<std::string> shared_path(const std::string& relative);
// $LATHE_MODELS/NAME.gguf, or models/NAME.gguf in the checkout (scripts/fetch-models writes it).
std::optional<std::string> model_path(const std::string& name);

#define LATHE_SKIP_WITHOUT(optional_path, what) \
  if (!(optional_path)) GTEST_SKIP() << what << " is not on this machine"

}  // namespace lathe
