// Checks for programmer errors: always on, they abort. Nothing that came from a file, a flag or the
// network may reach one; that gets an Error.
#pragma once

namespace lathe {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}

#define LATHE_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::lathe::check_failed(#condition, __FILE__, __LINE__))

// A place that no caller may reach; `why` says so in the message.
#define LATHE_UNREACHABLE(why) ::lathe::check_failed(why, __FILE__, __LINE__)

#ifdef LATHE_DEBUG_CHECKS
#define LATHE_DCHECK(condition) LATHE_CHECK(condition)
#else
#define LATHE_DCHECK(condition) static_cast<void>(0)
#endif
