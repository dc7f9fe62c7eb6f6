#include "cli/judge_report.h"

#include <cstdio>
#include <vector>

#include "base/json.h"
#include "base/progress.h"
#include "cli/format.h"
#include "cli/html_page.h"
#include "cli/svg_plot.h"

namespace lathe {
namespace {

double number(const Json& json) { return json.is_null() ? 0.0 : json.get<double>(); }
long long whole(const Json& json) { return json.get<long long>(); }

std::string table_row(const std::vector<std::string>& cells) {
  std::string html = "<tr><th scope=\"row\">" + escape_html(cells.front()) + "</th>";
  for (std::size_t i = 1; i < cells.size(); ++i) html += "<td>" + escape_html(cells[i]) + "</td>";
  return html + "</tr>\n";
}

std::string table_head(const std::vector<std::string>& cells) {
  std::string html = "<table><thead><tr>";
  for (const std::string& cell : cells) html += "<th>" + escape_html(cell) + "</th>";
  return html + "</tr></thead><tbody>\n";
}

std::string mining_html(const Json& report) {
  const Json& mining = report["mining"];
  const double questions = number(mining["questions"]);
  std::string html = "<h2>Mining</h2>\n" + table_head({"", ""});
  html += table_row({"Questions, of which usable", format("%lld, %lld", whole(mining["questions"]),
                                                          whole(mining["used_questions"]))});
  html += table_row({"Mismatches tried", format("%lld", whole(mining["records"]))});
  html += table_row({"Important", format("%.1f %%", 100 * number(mining["positive_rate"]))});
  html += table_row({"Cut off by the limit of tokens (important by rule)",
                     format("%lld", whole(mining["truncated"]))});
  html += table_row({"Tokens generated", format("%lld", whole(mining["generated_tokens"]))});
  if (questions > 0) {
    html += table_row(
        {"Tokens a question", format("%.0f", number(mining["generated_tokens"]) / questions)});
  }
  html += table_row({"Time of the last run", format_duration(number(report["mining_seconds"]))});
  return html + "</tbody></table>\n";
}

std::string plots_html(const Json& test) {
  Curve roc{.label = "test questions", .points = {}};
  for (const Json& point : test["roc"]) {
    roc.points.emplace_back(point[0].get<double>(), point[1].get<double>());
  }
  Curve calibration{.label = "test tokens", .points = {}};
  for (const Json& bin : test["calibration"]) {
    calibration.points.emplace_back(number(bin["predicted"]), number(bin["observed"]));
  }
  Curve accepted{.label = "questions changed", .points = {}};
  for (const Json& row : test["by_threshold"]) {
    accepted.points.emplace_back(number(row["rho"]), number(row["questions_changed"]));
  }
  return unit_square_chart("Important tokens found", "unimportant tokens held back",
                           "important tokens held back", {roc}) +
         unit_square_chart("Calibration", "predicted share of important tokens", "observed",
                           {calibration}) +
         unit_square_chart("What letting mismatches pass changes, on mined answers",
                           "mismatches accepted", "questions with another outcome", {accepted});
}

std::string thresholds_html(const Json& report) {
  std::string html =
      "<h2>Thresholds</h2>\n" +
      table_head({"threshold", "important kept", "mismatches accepted", "questions changed"});
  for (const Json& row : report["test"]["by_threshold"]) {
    html += table_row({format("%.4f", number(row["threshold"])),
                       format("%.1f %%", 100 * number(row["recall"])),
                       format("%.1f %%", 100 * number(row["rho"])),
                       format("%.1f %%", 100 * number(row["questions_changed"]))});
  }
  html +=
      "</tbody></table>\n<p class=\"note\">On test questions, by the answers that mining tried: "
      "a question counts as changed when any of its important mismatches would pass. What "
      "decoding with the judge really costs: <code>lathe eval TASK BIG --draft SMALL --judge "
      "FILE</code>.</p>\n<h2>Certified</h2>\n" +
      table_head({"questions changed, at most", "threshold", "on questions"});
  for (const Json& row : report["risk"]["certified"]) {
    html += table_row({format("%.0f %%", 100 * number(row["epsilon"])),
                       format("%.4f", number(row["threshold"])),
                       format("%lld", whole(row["questions"]))});
  }
  return html + "</tbody></table>\n<p class=\"note\">" +
         escape_html(report["risk"]["method"].get<std::string>()) +
         ", on validation questions; 0: they are too few.</p>\n";
}

}  // namespace

std::string judge_report_text(const Json& report) {
  const Json& mining = report["mining"];
  const Json& train = report["train"];
  std::string text;
  const auto add = [&](const char* pattern, auto... values) { text += format(pattern, values...); };
  add("mined     %lld of %lld questions usable, %lld tokens, %.1f %% important, %lld generated\n",
      mining["used_questions"].get<long long>(), mining["questions"].get<long long>(),
      mining["records"].get<long long>(), 100 * number(mining["positive_rate"]),
      mining["generated_tokens"].get<long long>());
  const Json& auc = train["auc"];
  add("ROC AUC   train %.3f, validation %.3f, test %.3f (95 %%: %.3f to %.3f); C = %g\n",
      number(auc["train"]), number(auc["validation"]), number(auc["test"]),
      number(auc["test_interval_95"][0]), number(auc["test_interval_95"][1]), number(train["C"]));
  add("%-10s %-10s %-22s %s\n", "recall", "threshold", "accepted mismatches", "on test");
  for (const Json& row : report["recommended"]) {
    add("%-10.2f %-10.4f %-22.3f recall %.2f, accepted %.3f\n", number(row["recall"]),
        number(row["threshold"]), number(row["rho"]), number(row["test"]["recall"]),
        number(row["test"]["rho"]));
  }
  for (const Json& row : report["risk"]["certified"]) {
    add("at most %.0f %% of questions changed (certified on %lld): threshold %.4f\n",
        100 * number(row["epsilon"]), row["questions"].get<long long>(), number(row["threshold"]));
  }
  return text;
}

std::string judge_report_html(const Json& report) {
  const std::string name = report["judge"].get<std::string>();
  const Json& train = report["train"];
  const Json& auc = train["auc"];
  std::string html = html_begin("Judge " + name, "Judge " + name);
  html += "<p>Task " + escape_html(report["mining"]["task"].get<std::string>()) +
          format(", C = %g, default threshold %.4f.</p>\n", number(train["C"]),
                 number(report["default_threshold"]));
  html += mining_html(report);
  html += "<h2>How well it tells them apart</h2>\n" + table_head({"", "ROC AUC"});
  html += table_row({"training questions", format("%.3f", number(auc["train"]))});
  html += table_row({"validation questions", format("%.3f", number(auc["validation"]))});
  html += table_row({"test questions", format("%.3f (95 %%: %.3f to %.3f)", number(auc["test"]),
                                              number(auc["test_interval_95"][0]),
                                              number(auc["test_interval_95"][1]))});
  html += "</tbody></table>\n" + plots_html(report["test"]) + thresholds_html(report);
  return html + std::string(kHtmlEnd);
}

}  // namespace lathe
