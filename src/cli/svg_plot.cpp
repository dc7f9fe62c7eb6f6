#include "cli/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cli/format.h"

namespace lathe {
namespace {

// Chosen for contrast on white and for readers who do not tell red from green (Okabe and Ito 2008).
constexpr const char* kColors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                   "#e69f00", "#56b4e9", "#000000"};

std::string text_at(double x, double y, const char* anchor, const std::string& text) {
  return format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor) +
         escape_html(text) + "</text>\n";
}

std::string header(double width, double height, const std::string& title) {
  return format(
             "<svg viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" role=\"img\" "
             "xmlns=\"http://www.w3.org/2000/svg\">\n",
             width, height, width) +
         "<title>" + escape_html(title) + "</title>\n" +
         "<text x=\"0\" y=\"16\" font-weight=\"bold\">" + escape_html(title) + "</text>\n";
}

std::string short_number(double value) {
  return std::abs(value) >= 1000 ? format("%.0f", value) : format("%.4g", value);
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string bar_chart(const std::string& title, const std::vector<Bar>& bars,
                      const std::string& unit) {
  constexpr double kWidth = 640, kLabel = 170, kRow = 26, kTop = 30, kNumber = 110;
  double largest = 0;
  int rows = 0;
  for (const Bar& bar : bars) {
    if (!std::isfinite(bar.value)) continue;
    largest = std::max(largest, bar.value + std::max(0.0, bar.error));
    ++rows;
  }
  if (largest <= 0) largest = 1;
  std::string svg = header(kWidth, kTop + kRow * rows + 6, title);
  double y = kTop;
  for (const Bar& bar : bars) {
    if (!std::isfinite(bar.value)) continue;
    const double scale = (kWidth - kLabel - kNumber) / largest;
    const double width = std::max(0.0, bar.value) * scale;
    svg += text_at(kLabel - 8, y + 16, "end", bar.label);
    svg += format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n",
                  kLabel, y + 3, width, kRow - 8, bar.emphasized ? kColors[0] : "#9aa5b1");
    if (bar.error > 0 && std::isfinite(bar.error)) {
      svg += format("<path d=\"M%.1f %.1fH%.1f\" stroke=\"#222\" stroke-width=\"1.5\"/>\n",
                    kLabel + std::max(0.0, bar.value - bar.error) * scale, y + kRow / 2 - 1,
                    kLabel + (bar.value + bar.error) * scale);
    }
    const double end = width + std::max(0.0, std::isfinite(bar.error) ? bar.error : 0) * scale;
    svg += text_at(kLabel + end + 6, y + 16, "start", short_number(bar.value) + unit);
    y += kRow;
  }
  return svg + "</svg>\n";
}

std::string unit_square_chart(const std::string& title, const std::string& x_label,
                              const std::string& y_label, const std::vector<Curve>& curves) {
  constexpr double kWidth = 560, kHeight = 380, kLeft = 64, kTop = 40, kSide = 290;
  const auto x_of = [&](double x) { return kLeft + kSide * x; };
  const auto y_of = [&](double y) { return kTop + kSide * (1 - y); };
  std::string svg = header(kWidth, kHeight, title);
  for (int i = 0; i <= 5; ++i) {
    const double tick = i / 5.0;
    svg += format("<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/>\n", x_of(0), y_of(tick), x_of(1));
    svg += text_at(x_of(0) - 6, y_of(tick) + 4, "end", format("%.1f", tick));
    svg += text_at(x_of(tick), y_of(0) + 16, "middle", format("%.1f", tick));
  }
  svg += format("<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"#bbb\"/>\n", x_of(0), y_of(0), x_of(1),
                y_of(1));
  svg += text_at(x_of(.5), kHeight - 12, "middle", x_label);
  svg += text_at(kLeft, kTop - 8, "start", y_label);
  for (std::size_t c = 0; c < curves.size(); ++c) {
    const char* color = kColors[c % std::size(kColors)];
    const char* dash = curves[c].dashed ? " stroke-dasharray=\"5 4\"" : "";
    std::string path;
    for (const auto& [x, y] : curves[c].points) {
      if (!std::isfinite(x) || !std::isfinite(y)) continue;
      path += format("%s%.1f %.1f", path.empty() ? "M" : "L", x_of(x), y_of(y));
    }
    svg += "<path d=\"" + path + "\" fill=\"none\" stroke=\"" + color + "\" stroke-width=\"2\"" +
           dash + "/>\n";
    const double y = kTop + 18 * static_cast<double>(c) + 10;
    svg += format("<path d=\"M%.1f %.1fh22\" stroke=\"%s\" stroke-width=\"2\"%s/>\n", x_of(1) + 14,
                  y - 4, color, dash);
    svg += text_at(x_of(1) + 42, y, "start", curves[c].label);
  }
  return svg + "</svg>\n";
}

std::string log_line_chart(const std::string& title, const std::string& x_label,
                           const std::vector<Line>& lines) {
  constexpr double kWidth = 640, kHeight = 300, kLeft = 64, kRight = 150, kTop = 30, kBottom = 40;
  double low = std::numeric_limits<double>::infinity(), high = 0;
  std::size_t count = 0;
  for (const Line& line : lines) {
    count = std::max(count, line.values.size());
    for (const double value : line.values) {
      if (!std::isfinite(value) || value <= 0) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  std::string svg = header(kWidth, kHeight, title);
  if (high == 0) return svg + text_at(kLeft, 60, "start", "nothing was measured") + "</svg>\n";
  const double bottom_decade = std::floor(std::log10(low));
  const double top_decade = std::max(bottom_decade + 1, std::ceil(std::log10(high)));
  const auto x_of = [&](std::size_t i) {
    const double span = count > 1 ? static_cast<double>(count - 1) : 1;
    return kLeft + (kWidth - kLeft - kRight) * static_cast<double>(i) / span;
  };
  const auto y_of = [&](double value) {
    const double share = (std::log10(value) - bottom_decade) / (top_decade - bottom_decade);
    return kHeight - kBottom - (kHeight - kBottom - kTop) * share;
  };
  for (double decade = bottom_decade; decade <= top_decade; ++decade) {
    const double y = y_of(std::pow(10, decade));
    svg += format("<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/>\n", kLeft, y, kWidth - kRight);
    svg += text_at(kLeft - 6, y + 4, "end", format("1e%.0f", decade));
  }
  svg += text_at((kLeft + kWidth - kRight) / 2, kHeight - 8, "middle", x_label);
  for (std::size_t i = 0; i < count; i += std::max<std::size_t>(1, (count + 9) / 10)) {
    svg += text_at(x_of(i), kHeight - kBottom + 16, "middle", std::to_string(i));
  }
  for (std::size_t l = 0; l < lines.size(); ++l) {
    const char* color = kColors[l % std::size(kColors)];
    const char* dash = lines[l].dashed ? " stroke-dasharray=\"5 4\"" : "";
    std::string path;
    bool pen_down = false;
    for (std::size_t i = 0; i < lines[l].values.size(); ++i) {
      const double value = lines[l].values[i];
      if (!std::isfinite(value) || value <= 0) {
        pen_down = false;
        continue;
      }
      path += format("%s%.1f %.1f", pen_down ? "L" : "M", x_of(i), y_of(value));
      pen_down = true;
    }
    svg += "<path d=\"" + path + "\" fill=\"none\" stroke=\"" + color + "\" stroke-width=\"2\"" +
           dash + "/>\n";
    const double y = kTop + 18 * static_cast<double>(l) + 10;
    svg += format("<path d=\"M%.1f %.1fh22\" stroke=\"%s\" stroke-width=\"2\"%s/>\n",
                  kWidth - kRight + 10, y - 4, color, dash);
    svg += text_at(kWidth - kRight + 38, y, "start", lines[l].label);
  }
  return svg + "</svg>\n";
}

}  // namespace lathe
