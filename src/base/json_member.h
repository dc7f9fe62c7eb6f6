// A member of a JSON object that may be left out or null, which mean the same.
#pragma once
#include <nlohmann/json_fwd.hpp>

namespace lathe {

// Null where the object has no such member, or a null.
const nlohmann::ordered_json* member(const nlohmann::ordered_json& object, const char* name);

}  // namespace lathe
