// Runs the kernels of kernels/*.cu, unchanged, on a CPU in tests: force-include this file (launch.h says how to build).
//
// A block's threads are fibers on one OS thread; one block runs after the other. Warp operations gather their 32 lanes. The order of
// blocks, warps and lanes comes from a seed. Shared memory starts as NaN, cp.async's destination stays NaN until the wait.
//
// Found in every build: wrong results from a missing barrier or wait (by seed, by poison), deadlock, divergent __syncthreads and warp
//   operations, misaligned vectors, cp.async, ldmatrix, tile loads and wgmma outside shared memory, launches that
//   the driver would refuse; wrong results from a missing wait for an mbarrier or for wgmma, or from a stage that is filled too early.
// With AddressSanitizer + UBSan: every access outside an allocation or shared memory; every misaligned one.
// With ThreadSanitizer: two threads, of one block or of two, that touch one address with no barrier, fence or atomic between.
// Not found: bank conflicts, missing proxy fences, overruns from one part of shared memory into the next, time.
// Stricter than the device: a thread that returns early counts as missing at the next barrier; one open operation per warp.
//
//   types.h        words and vector types          scheduler.h   threads, warps, barriers, faults
//   half.h         bf16 and half                   warp.h        shuffles and votes
//   intrinsics.h   per-thread functions            copy.h        cp.async
//   atomics.h                                      tensor_core.h ldmatrix, mma
//   fiber.h        stacks and switching            hopper.h      mbarriers, tile loads, wgmma
//   sanitize.h     what the sanitizers are told    launch.h      kernels by name, C interface
#pragma once
#include "types.h"

#include "half.h"
#include "intrinsics.h"

#include "atomics.h"
#include "scheduler.h"

#include "copy.h"
#include "hopper.h"
#include "tensor_core.h"
#include "warp.h"

#include "launch.h"
