#include "copy.h"

#include "scheduler.h"

namespace host {
namespace {
// Word by word and volatile: each access stands for itself under the sanitizers, as memcpy's would not.
void store_words(char* to, const uint32_t* words, int bytes) {
  for (int i = 0; i < bytes / 4; i++) reinterpret_cast<volatile uint32_t*>(to)[i] = words[i];
}
}  // namespace

void Copies::clear() {
  issued.clear();
  group_ends.clear();
  copies_done = groups_done = 0;
}

void cp_async(void* to, const void* from, int bytes, bool read_source, Location at) {
  Copies::Copy copy{static_cast<char*>(to), bytes, {}};
  check_shared(to, bytes, "cp.async's destination", at);
  check_aligned(to, bytes, "cp.async's destination", at);
  if (read_source) {
    check_aligned(from, bytes, "cp.async's source", at);
    for (int i = 0; i < bytes / 4; i++) copy.words[i] = static_cast<const volatile uint32_t*>(from)[i];
  }
  const uint32_t poison[4] = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};  // NaN in every float type
  store_words(copy.to, poison, bytes);
  Quiet quiet;
  self().copies.issued.push_back(copy);
}

void cp_async_commit() {
  Quiet quiet;
  Copies& copies = self().copies;
  copies.group_ends.push_back(copies.issued.size());
}

void cp_async_wait(int groups_left) {
  Copies* copies;
  size_t first, last;
  {
    Quiet quiet;
    copies = &self().copies;
    first = last = copies->copies_done;
    while (copies->group_ends.size() - copies->groups_done > size_t(groups_left)) last = copies->group_ends[copies->groups_done++];
    copies->copies_done = last;
  }
  for (size_t i = first; i < last; i++) {
    Copies::Copy copy;
    {
      Quiet quiet;
      copy = copies->issued[i];
    }
    store_words(copy.to, copy.words, copy.bytes);
  }
  Quiet quiet;
  if (copies->copies_done == copies->issued.size() && copies->groups_done == copies->group_ends.size()) copies->clear();
}

}  // namespace host
