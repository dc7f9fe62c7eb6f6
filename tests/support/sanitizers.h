// Whether AddressSanitizer or ThreadSanitizer is built in: everything takes some ten times as long,
// and malloc is the sanitizer's own.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LATHE_SANITIZED 1
#else
#define LATHE_SANITIZED 0
#endif

namespace lathe {
inline constexpr bool kSanitized = LATHE_SANITIZED != 0;
}  // namespace lathe
