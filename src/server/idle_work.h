// Work that the engine's thread does while no request needs it.
#pragma once

namespace lathe {

class IdleWork {
 public:
  virtual ~IdleWork() = default;
  // Between two steps, in the engine's thread. others_wait: something else than requests of the
  // engine waits for it.
  virtual void between_steps(bool others_wait) = 0;
};

}  // namespace lathe
