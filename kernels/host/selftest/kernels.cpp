// What build.rs generates for the kernels of mpa, here by hand for the self-test's own.
#include "../../common.cuh"
#include "../../hopper.cuh"
#include "faults.h"

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // one of the planted bugs

namespace {
#include "primitives.cu"
#include "faults.cu"
#include "hopper.cu"
#include "hopper_faults.cu"

[[maybe_unused]] bool registered =
    host::add("selftest_mma_bf16", &selftest_mma_bf16, 32) && host::add("selftest_mma_s8", &selftest_mma_s8, 32) &&
    host::add("selftest_ldmatrix", &selftest_ldmatrix, 32) && host::add("selftest_cp_async", &selftest_cp_async, 64) &&
    host::add("selftest_shuffle", &selftest_shuffle, 32) && host::add("selftest_reduce", &selftest_reduce, 1024) &&
    host::add("selftest_atomics", &selftest_atomics, 64) && host::add("selftest_indices", &selftest_indices) &&
    host::add("selftest_arguments", &selftest_arguments, 32) && host::add("selftest_speed", &selftest_speed, 256) &&
    host::add("selftest_fault", &selftest_fault, 64) && host::add("selftest_ring", &selftest_ring, 64) &&
    host::add("selftest_ring_unset", &selftest_ring_unset, 64) && host::add("selftest_tile_load", &selftest_tile_load, 64) &&
    host::add("selftest_mbarrier", &selftest_mbarrier, 96) && host::add("selftest_wgmma", &selftest_wgmma, 128) &&
    host::add("selftest_wgmma_s8", &selftest_wgmma_s8, 128) &&
    host::add("selftest_hopper_fault", &selftest_hopper_fault, 160);
}  // namespace
