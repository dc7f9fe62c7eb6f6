#include "server/output_format.h"

#include "base/json.h"
#include "server/api_error.h"

namespace lathe {

OutputFormat output_format(const RequestFields& fields, const ServedModel&) {
  OutputFormat result;
  if (const Json* format = fields.find("response_format")) {
    const RequestFields inner(*format, "response_format.");
    const std::string type = inner.string("type").value_or("");
    if (type != "text") {
      bad_field("response_format", "response_format.type '", type.substr(0, 40),
                "' is not supported; use text");
    }
  }
  const std::string choice =
      fields.find("tool_choice") != nullptr && fields.find("tool_choice")->is_string()
          ? fields.string("tool_choice").value_or("")
          : "";
  if (const Json* tools = fields.find("tools"); tools != nullptr && choice != "none") {
    if (!tools->is_array()) bad_field("tools", "tools must be an array, not ", kind_of(*tools));
    if (!tools->empty()) bad_field("tools", "tools are not supported; leave them out");
  }
  return result;
}

}  // namespace lathe
