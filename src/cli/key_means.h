// Mean keys for caches that code keys without them (Model::learn_key_means()).
#pragma once
#include "cache/kv_format.h"
#include "cli/loaded_model.h"

namespace lathe {

// Whether a cache of this format, on this device, has keys without their mean.
bool leaves_key_means_out(KvFormat format, const Exec& exec);

// The model learns them from pieces of the built-in text (compress/default_calibration.h) if a
// cache of this format leaves them out and the model has a tokenizer. Some hundred tokens: as long
// as a prompt of that length takes. Before any cache is made.
void learn_key_means_for(KvFormat format, const TextModel& text, Model& model, Exec& exec);

}  // namespace lathe
