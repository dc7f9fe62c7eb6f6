// Progress of work that takes longer than two seconds, on standard error: a bar with rate and ETA
// on a terminal, a plain line every ten seconds otherwise, nothing in quiet mode.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace lathe {

class Progress {
 public:
  // `unit` names what is counted ("tokens", "layers"); total < 0 when unknown.
  Progress(std::string label, int64_t total, std::string unit, bool quiet = false);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // What an earlier run has done already: it took this one no time. Before the first advance().
  void begin_at(int64_t done);
  void advance(int64_t amount = 1);
  void set_label(std::string label) { label_ = std::move(label); }
  int64_t done() const { return done_; }
  // Seconds to go at this run's mean rate; < 0 when unknown.
  double eta_seconds() const;

 private:
  void draw(bool last);
  using Clock = std::chrono::steady_clock;
  std::string label_;
  std::string unit_;
  int64_t total_;
  int64_t done_ = 0;
  int64_t done_before_ = 0;  // by earlier runs
  bool quiet_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_draw_ = start_;
};

// "3 min 20 s", "45 s", "2 h 05 min".
std::string format_duration(double seconds);
// "1.50 GiB", "820 KiB".
std::string format_bytes(double bytes);

}  // namespace lathe
