// The self-test of the CPU execution layer. No argument: all must be right. `list`: the planted bugs. A bug's name: run it.
// Driven by scripts/test-host-layer.sh.
#include <cstring>

#include "check.h"

void test_conversions();
void test_primitives();
void test_hopper();
void test_launch();
int run_fault(const char* name);
void list_faults();

int main(int count, char** words) {
  setvbuf(stdout, nullptr, _IOLBF, 0);  // what was printed before a sanitizer ends us is not lost
  if (count > 1 && !strcmp(words[1], "list")) return list_faults(), 0;
  if (count > 1) return run_fault(words[1]);
  test_conversions();
  test_primitives();
  test_hopper();
  test_launch();
  if (int rc = run_fault("none")) return rc;
  printf("%d failures\n", failures);
  return failures != 0;
}
