#pragma once

namespace lathe {
inline constexpr const char* kLatheVersion = LATHE_VERSION;  // from CMakeLists.txt
}
