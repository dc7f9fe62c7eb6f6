// `speculative` of a request: how it wants to be drafted for, and whether a judge may let tokens
// pass that the model would not have chosen (docs/speculation.md).
#pragma once
#include "engine/request.h"
#include "server/request_fields.h"
#include "server/served_speculation.h"

namespace lathe {

// threshold: of requests that do not name a judge, as it is now: when an alarm has lowered it, also
// of those that name the judge and no threshold. Sets sampling.coupled where the request wants a
// deterministic answer. Nothing is silently exact or silently lossy: an unknown judge, a field that
// is not known, or what this server does not have, throws ApiError 400.
SpeculativeParams speculative_params(const RequestFields& fields, const ServedSpeculation& served,
                                     double threshold, SamplingParams& sampling);

}  // namespace lathe
