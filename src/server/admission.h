// How many choices may be with the engine at once: those that run and a queue of those that wait.
// What is beyond is refused at once (429), so that waiting stays bounded in time and memory.
#pragma once
#include <cstdint>
#include <mutex>

namespace lathe {

class Admission {
 public:
  // running: what the engine computes at a time; queue: what may wait.
  Admission(int64_t running, int64_t queue) : max_(running + queue) {}

  // Holds the places until it goes.
  class Ticket {
   public:
    Ticket(Ticket&& other) noexcept : admission_(other.admission_), count_(other.count_) {
      other.admission_ = nullptr;
    }
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket();

   private:
    friend class Admission;
    Ticket(Admission* admission, int64_t count) : admission_(admission), count_(count) {}
    Admission* admission_;
    int64_t count_;
  };

  // Throws ApiError: 429 when there is no room now, 400 when there never is.
  Ticket admit(int64_t count);
  int64_t num_open() const;

 private:
  const int64_t max_;
  mutable std::mutex mutex_;
  int64_t open_ = 0;
};

}  // namespace lathe
