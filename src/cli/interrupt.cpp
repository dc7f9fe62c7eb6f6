#include "cli/interrupt.h"

#include <signal.h>

namespace lathe {
namespace {

volatile sig_atomic_t g_requested = 0;  // a signal handler can reach nothing but a global
struct sigaction g_previous;

}  // namespace

InterruptScope::InterruptScope() {
  g_requested = 0;
  struct sigaction action = {};
  action.sa_handler = [](int) { g_requested = 1; };
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, &g_previous);
}

InterruptScope::~InterruptScope() { sigaction(SIGINT, &g_previous, nullptr); }

bool InterruptScope::requested() const { return g_requested != 0; }

}  // namespace lathe
