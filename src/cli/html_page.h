// The frame of the reports: one page that fetches nothing.
#pragma once
#include <string>
#include <string_view>

namespace lathe {

// Up to and including the headline, both escaped; the caller ends with kHtmlEnd.
std::string html_begin(std::string_view title, std::string_view headline);
inline constexpr std::string_view kHtmlEnd = "</body></html>\n";

}  // namespace lathe
