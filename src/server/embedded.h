// Files of src/server that are part of the program: the chat page and the OpenAPI document.
#pragma once
#include <string_view>

namespace lathe {

// The bytes of a file by its name ("openapi.json", "page/index.html"); empty when it is not in this
// build. Live as long as the program.
std::string_view embedded_file(std::string_view name);

}  // namespace lathe
