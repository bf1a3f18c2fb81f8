// cp.async: the destination is poisoned at once and written only by the wait, so that a missing commit or wait is seen.
#pragma once
#include <vector>

#include "types.h"

namespace host {

struct Copies {  // of one thread
  struct Copy {
    char* to;
    int bytes;
    uint32_t words[4];  // read when issued, so that a fault is reported at the line that asked for it
  };
  std::vector<Copy> issued;         // oldest first
  std::vector<size_t> group_ends;   // indices into issued, one per committed group
  size_t copies_done = 0, groups_done = 0;

  void clear();
};

// bytes: 4 or 16. Without read_source zeros are copied and from is not looked at.
void cp_async(void* to, const void* from, int bytes, bool read_source, Location at);
void cp_async_commit();
void cp_async_wait(int groups_left);

}  // namespace host
