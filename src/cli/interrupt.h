// Ctrl-C as a wish to stop what is going on, not the program.
#pragma once

namespace lathe {

// While one lives, SIGINT is noted instead of ending the process. One at a time.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;
  bool requested() const;
};

}  // namespace lathe
