// What fit-judge says of a judge: a few lines, and a page with plots.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace lathe {

// report: the metadata of the judge file and mining_seconds.
std::string judge_report_text(const nlohmann::ordered_json& report);
// One page without scripts or anything from elsewhere.
std::string judge_report_html(const nlohmann::ordered_json& report);

}  // namespace lathe
