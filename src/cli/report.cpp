#include "cli/report.h"

#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "base/progress.h"
#include "cli/eval_report.h"
#include "cli/format.h"
#include "cli/html_page.h"
#include "cli/svg_plot.h"
#include "compress/quantize_model.h"

namespace lathe {
namespace {

// "model.layers.12.mlp.down_proj" -> 12; -1 for lm_head and the like.
int64_t layer_of(const std::string& module) {
  const std::string prefix = "model.layers.";
  if (module.rfind(prefix, 0) != 0) return -1;
  return std::atoll(module.c_str() + prefix.size());
}

// Mean relative error over the linears of each layer, by kind of module, and that of plain
// rounding.
std::vector<Line> error_lines(const std::vector<LinearReport>& linears) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  std::map<std::string, std::vector<double>> by_kind;
  std::vector<double> rtn, rtn_count;
  const auto at = [&](std::vector<double>& values, int64_t layer, double fill) -> double& {
    if (static_cast<int64_t>(values.size()) <= layer) {
      values.resize(static_cast<std::size_t>(layer) + 1, fill);
    }
    return values[static_cast<std::size_t>(layer)];
  };
  for (const LinearReport& linear : linears) {
    const int64_t layer = layer_of(linear.module);
    if (layer < 0) continue;
    const std::string kind = linear.module.substr(linear.module.rfind('.') + 1);
    double& value = at(by_kind[kind], layer, kNone);  // experts: the worst one
    value = std::isnan(value) ? linear.error : std::max(value, linear.error);
    if (linear.rtn_error >= 0) {
      at(rtn, layer, 0) += linear.rtn_error;
      at(rtn_count, layer, 0) += 1;
    }
  }
  std::vector<Line> lines;
  for (const auto& [kind, values] : by_kind) lines.push_back({kind, values, false});
  for (std::size_t i = 0; i < rtn.size(); ++i)
    rtn[i] = rtn_count[i] > 0 ? rtn[i] / rtn_count[i] : 0;
  if (!rtn.empty()) lines.push_back({"rounding, mean", rtn, true});
  return lines;
}

std::string row(const std::string& name, const std::string& before, const std::string& after,
                const std::string& change) {
  std::string html = "<tr><th scope=\"row\">" + escape_html(name) + "</th>";
  for (const std::string& cell : {before, after, change}) {
    html += "<td>" + escape_html(cell) + "</td>";
  }
  return html + "</tr>\n";
}

std::string bytes(int64_t count) { return format_bytes(static_cast<double>(count)); }

std::string times(double ratio) {
  return std::isfinite(ratio) && ratio > 0 ? format("%.2f×", ratio) : "";
}

}  // namespace

Json report_json(const CompressionReport& report) {
  Json json;
  json["source"] = report.source;
  json["out"] = report.out;
  json["command"] = report.command;
  json["created"] = report.created;
  json["lathe_version"] = report.version;
  json["format"] = report.format;
  json["method"] = report.method;
  json["activations"] = report.activations;
  json["source_disk_bytes"] = report.source_disk_bytes;
  json["disk_bytes"] = report.disk_bytes;
  json["source_weight_bytes"] = report.source_weight_bytes;
  json["weight_bytes"] = report.weight_bytes;
  json["source_decode_tokens_per_second"] = report.source_decode_rate;
  json["decode_tokens_per_second"] = report.decode_rate;
  json["quantize_seconds"] = nullptr;
  if (report.quantize_seconds) json["quantize_seconds"] = *report.quantize_seconds;
  json["data"] = report.data;
  json["quality"] = Json::array();
  for (const MeasuredMethod& method : report.methods) {
    Json quality = {{"method", method.method}};
    quality.update(divergence_json(method.quality));
    json["quality"].push_back(std::move(quality));
  }
  if (report.cache) {
    json["cache"] = {{"fit", parse_json(report.cache->fit, "fit")},
                     {"bits_per_value", report.cache->bits_per_value},
                     {"perplexity", report.cache->quality.perplexity}};
  }
  json["linears"] = parse_json(reports_to_json(report.linears), "reports");
  return json;
}

std::string report_html(const CompressionReport& report) {
  std::string html =
      html_begin("Compression of " + report.source, report.source + " in " + report.format) +
      "<p>Method " + escape_html(report.method) + ", activations " +
      escape_html(report.activations) + ", " + escape_html(report.created) + ", lathe " +
      escape_html(report.version) + ".</p>\n";
  html += "<table><thead><tr><th></th><th>before</th><th>after</th><th></th></tr></thead><tbody>\n";
  html += row("On disk", bytes(report.source_disk_bytes), bytes(report.disk_bytes), "");
  html +=
      row("Weights read for a token", bytes(report.source_weight_bytes), bytes(report.weight_bytes),
          times(static_cast<double>(report.source_weight_bytes) /
                static_cast<double>(report.weight_bytes)) +
              " fewer");
  if (report.decode_rate > 0) {
    html += row("Decoding, tokens/s", format("%.1f", report.source_decode_rate),
                format("%.1f", report.decode_rate),
                times(report.decode_rate / report.source_decode_rate));
  }
  if (!report.methods.empty()) {
    const DivergenceResult& quality = report.methods.front().quality;
    html += row(
        "Perplexity", format("%.3f", quality.reference.perplexity),
        format("%.3f", quality.model.perplexity),
        format("%+.2f %%", 100 * (quality.model.perplexity / quality.reference.perplexity - 1)));
    html += row("KL divergence, nats a token", "", format("%.4f", quality.mean_kl), "");
    html +=
        row("Same most probable token", "", format("%.1f %%", 100 * quality.top1_agreement), "");
  }
  if (report.cache) {
    html += row("Key-value cache, bits a number (--kv aqua2)", "16",
                format("%.2f", report.cache->bits_per_value), "");
    html += row("Perplexity with that cache too", "",
                format("%.3f", report.cache->quality.perplexity), "");
  }
  html += "</tbody></table>\n";
  if (!report.methods.empty()) {
    const DivergenceResult& quality = report.methods.front().quality;
    html += "<p class=\"note\">" + escape_html(report.data) +
            format(", %lld windows of %lld tokens; the source model is run in bf16.",
                   static_cast<long long>(quality.model.windows),
                   static_cast<long long>(quality.model.seq_len)) +
            "</p>\n<h2>Quality</h2>\n";
    std::vector<Bar> perplexity = {{"uncompressed", quality.reference.perplexity, 0, false}};
    std::vector<Bar> divergence;
    for (std::size_t i = 0; i < report.methods.size(); ++i) {
      const MeasuredMethod& method = report.methods[i];
      perplexity.push_back({method.method, method.quality.model.perplexity, 0, i == 0});
      divergence.push_back(
          {method.method, method.quality.mean_kl, method.quality.mean_kl_error, i == 0});
    }
    html += bar_chart("Perplexity (lower is better)", perplexity, "");
    html +=
        bar_chart("KL divergence from the uncompressed model (lower is better)", divergence, "");
  }
  if (!report.linears.empty()) {
    html += "<h2>Where the error is</h2>\n";
    html += log_line_chart("Relative squared error of each layer's linears", "layer",
                           error_lines(report.linears));
  }
  html += "<h2>How it was made</h2>\n<p><code>" + escape_html(report.command) + "</code></p>\n<p>" +
          (report.quantize_seconds
               ? "Quantizing took " + escape_html(format_duration(*report.quantize_seconds)) + ". "
               : std::string()) +
          "The numbers are in <code>report.json</code>, the provenance in "
          "<code>lathe.json</code>.</p>\n";
  return html + std::string(kHtmlEnd);
}

}  // namespace lathe
