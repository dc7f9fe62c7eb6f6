// What a judge is bound to, of a model as a command has loaded it.
#pragma once
#include "cli/loaded_model.h"
#include "formats/judge_file.h"

namespace lathe {

JudgeTarget judge_target_of(const LoadedModel& model, const ModelFlags& flags);

}  // namespace lathe
