#include "cli/html_page.h"

#include "cli/svg_plot.h"

namespace lathe {
namespace {

constexpr const char* kStyle =
    "body{font:16px/1.5 system-ui,sans-serif;max-width:720px;margin:2em auto;padding:0 1em;"
    "color:#1a1a1a;background:#fff}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.3em .6em;"
    "border-bottom:1px solid #ddd}th:first-child{text-align:left;font-weight:normal}"
    "thead th{font-weight:bold}svg{max-width:100%;height:auto;margin:1em 0}"
    "svg text{font:13px system-ui,sans-serif;fill:#1a1a1a}code{background:#f2f2f2;padding:.1em "
    ".3em;"
    "overflow-wrap:anywhere}.note{color:#555;font-size:.9em}";

}  // namespace

std::string html_begin(std::string_view title, std::string_view headline) {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
         "<title>" +
         escape_html(title) + "</title>\n<style>" + kStyle + "</style></head><body>\n<h1>" +
         escape_html(headline) + "</h1>\n";
}

}  // namespace lathe
