#include "server/choices_request.h"

#include "server/sampling_fields.h"
#include "server/speculative_fields.h"

namespace lathe {

ChoicesRequest choices_request(const ApiContext& context, const RequestFields& fields) {
  const ServedModel& model = context.model;
  check_model(fields, model);
  refuse_unsupported(fields);
  ChoicesRequest request;
  request.params = sampling_params(fields, model);
  request.speculative = speculative_params(
      fields, model.speculation,
      context.shadow != nullptr ? context.shadow->threshold() : model.speculation.judge_threshold,
      request.params);
  request.shadow = context.shadow;
  return request;
}

}  // namespace lathe
