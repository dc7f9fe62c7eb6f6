#include "base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace lathe {
namespace {

template <typename... Args>
std::string print(const char* format, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, format, args...);
  return text;
}

}  // namespace

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  if (whole < 60) return print("%lld s", static_cast<long long>(whole));
  if (whole < 3600) {
    return print("%lld min %02lld s", static_cast<long long>(whole / 60),
                 static_cast<long long>(whole % 60));
  }
  return print("%lld h %02lld min", static_cast<long long>(whole / 3600),
               static_cast<long long>(whole % 3600 / 60));
}

std::string format_bytes(double bytes) {
  static const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return print(unit == 0 ? "%.0f %s" : "%.2f %s", bytes, kUnits[unit]);
}

Progress::Progress(std::string label, int64_t total, std::string unit, bool quiet)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (drawn_) draw(true);
}

double Progress::eta_seconds() const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  if (total_ < 0 || done_ <= done_before_) return -1;
  return elapsed / static_cast<double>(done_ - done_before_) * static_cast<double>(total_ - done_);
}

void Progress::begin_at(int64_t done) { done_ = done_before_ = done; }

void Progress::advance(int64_t amount) {
  done_ += amount;
  if (quiet_) return;
  const auto now = Clock::now();
  const bool long_work = now - start_ > std::chrono::seconds(2);
  if (done_ == total_) {  // drawn once, by the destructor
    drawn_ = drawn_ || long_work;
    return;
  }
  const auto interval = terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10);
  if (long_work && (!drawn_ || now - last_draw_ > interval)) draw(false);
}

void Progress::draw(bool last) {
  const auto now = Clock::now();
  last_draw_ = now;
  drawn_ = true;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done_ - done_before_) / std::max(elapsed, 1e-9);
  std::string line = label_ + ": ";
  if (total_ > 0) {
    const double share = static_cast<double>(done_) / static_cast<double>(total_);
    if (terminal_) {
      const int filled = std::clamp(static_cast<int>(share * 24), 0, 24);
      line += "[" + std::string(filled, '#') + std::string(24 - filled, '.') + "] ";
    }
    line += print("%3.0f %% ", share * 100);
  }
  if (!unit_.empty()) {
    line += print("%lld", static_cast<long long>(done_));
    if (total_ >= 0) line += print("/%lld", static_cast<long long>(total_));
    line += " " + unit_ + print(", %.*f/s, ", rate < 10 ? 2 : 0, rate);
  }
  if (last || eta_seconds() < 0) {
    line += format_duration(elapsed);
  } else {
    line += format_duration(eta_seconds()) + " left";
  }
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), last ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

}  // namespace lathe
