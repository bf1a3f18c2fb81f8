// The machine that runs a block: its threads, its warps, who waits for what.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "copy.h"
#include "fiber.h"
#include "hopper.h"
#include "sanitize.h"
#include "types.h"

namespace host {

enum class State : uint8_t { running, at_warp_operation, at_barrier, at_mbarrier, at_products, returned };

struct Thread {
  uint3 index;         // threadIdx
  unsigned id;         // linear; lane id % 32 of warp id / 32
  State state;
  Location at;         // where it waits
  unsigned barriers;   // __syncthreads passed
  Copies copies;       // its cp.async
  void* mbarrier;      // whose phase of `parity` it waits for
  unsigned parity;
  std::vector<Registers> fenced;  // named by wgmma_fence since the last wait
  Fiber* fiber;
};

// One operation of a warp at a time; the lanes hand over pointers to their operands.
struct Warp {
  unsigned arrived = 0;           // bit per lane
  unsigned mask = 0;              // the lanes that take part
  unsigned fences = 0;            // __syncwarp done
  const char* operation = nullptr;
  Location at;
  void* lane[32];
};

struct Machine {
  const char* kernel_name = "";
  std::function<void()> kernel;            // with its arguments
  std::vector<std::unique_ptr<Fiber>> fibers[FIBER_SETS];
  std::vector<Thread> threads;             // of the block that runs
  std::vector<Warp> warps;
  std::vector<Products> products;          // of each warp
  std::vector<std::vector<Order>> warpgroups;         // what each has issued
  std::vector<TileLoad> loads;             // under way
  char* shared = nullptr;                  // of the block, exactly as long as asked for
  size_t shared_bytes = 0;
  std::unique_ptr<char[]> tags;            // addresses for publish/observe, new ones in each block: two for the barrier, three per warp
  char launch_begins, launch_ends, fence;  // likewise, for the whole launch
  unsigned current = 0;                    // index into threads
  bool run_ahead = false;
  uint64_t random = 1;
  std::string fault;                       // empty: none so far
};
extern Machine machine;

inline Thread& self() { return machine.threads[machine.current]; }
inline Warp& warp_of(const Thread& thread) { return machine.warps[thread.id / 32]; }

// Runs all blocks. Returns an empty string, or the report of the first fault.
std::string run_grid(dim3 grid, dim3 block, size_t shared_bytes, uint64_t seed);

uint64_t next_random();

// Called by a CUDA thread: stops the launch with a report that names kernel, block, thread and source line.
[[noreturn]] void fail(const std::string& what, Location at);

// Called by a CUDA thread: lets others run.
void give_way();
// The same, until the scheduler has set its state back to running.
void wait_in(State state, Location at);

// A warp operation, from the side of one lane: null once another lane has completed it, or the warp for the lane that came last, which
// computes the result for all and then calls depart.
Warp* arrive(const char* operation, unsigned mask, void* operands, Location at);
void depart(Warp& warp);

void check_aligned(const void* p, size_t bytes, const char* what, Location at);
void check_shared(const void* p, size_t bytes, const char* what, Location at);

}  // namespace host

void __syncthreads(host::Location at = host::Location::current());
void __syncwarp(unsigned mask = 0xffffffff, host::Location at = host::Location::current());
void __threadfence();
void __threadfence_block();
void __nanosleep(unsigned nanoseconds);
