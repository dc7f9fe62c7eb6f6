// Names of requests.
#pragma once
#include <string>

namespace lathe {

// 32 hexadecimal digits of random bits: unique, and says nothing. Any thread.
std::string new_request_id();

}  // namespace lathe
