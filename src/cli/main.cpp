#include <cstdio>

int main() {
  std::puts("lathe 0.1.0");
  return 0;
}
