// Two kinds of plots as SVG text, for pages that fetch nothing.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

// Text for HTML and SVG: & < > " ' as entities.
std::string escape_html(std::string_view text);

struct Bar {
  std::string label;
  double value = 0;
  double error = 0;  // drawn as a whisker when > 0
  bool emphasized = false;
};
// Horizontal bars from zero. Values that are not finite are left out.
std::string bar_chart(const std::string& title, const std::vector<Bar>& bars,
                      const std::string& unit);

struct Line {
  std::string label;
  std::vector<double> values;  // at x = 0, 1, ...; not finite or <= 0: a gap
  bool dashed = false;
};
// Lines over layers with a logarithmic y axis.
std::string log_line_chart(const std::string& title, const std::string& x_label,
                           const std::vector<Line>& lines);

}  // namespace lathe
