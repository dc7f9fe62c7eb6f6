// Three kinds of plots as SVG text, for pages that fetch nothing.
#pragma once
#include <string>
#include <string_view>
#include <utility>
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

struct Curve {
  std::string label;
  std::vector<std::pair<double, double>> points;  // x and y from 0 to 1, in order of x
  bool dashed = false;
};
// Curves over the unit square; the diagonal is drawn thin.
std::string unit_square_chart(const std::string& title, const std::string& x_label,
                              const std::string& y_label, const std::vector<Curve>& curves);

struct Line {
  std::string label;
  std::vector<double> values;  // at x = 0, 1, ...; not finite or <= 0: a gap
  bool dashed = false;
};
// Lines over layers with a logarithmic y axis.
std::string log_line_chart(const std::string& title, const std::string& x_label,
                           const std::vector<Line>& lines);

}  // namespace lathe
