// Hopper's asynchronous units (sm_90a): mbarriers, tile loads (TMA), products of a warpgroup (wgmma). One name, two bodies: PTX on the
// device, an emulation on the host (host/hopper.h). Section numbers are the PTX ISA's (9.0). A kernel that uses them guards its body with
// MPA_HOPPER, since every file is compiled for older GPUs too; the launcher asks Gpu::hopper() first.
//
// What the host cannot find is said with the words "not seen on the host": ordering between proxies.
#pragma once
#include "mma.cuh"

#if defined(MPA_HOST) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MPA_HOPPER 1
#endif

constexpr int WARPGROUP = 128;  // threads: four warps running, the first a multiple of four

// The number of the thread's warpgroup. The shuffle tells ptxas that a warp has one: descriptors that follow from it stay in uniform registers.
__device__ __forceinline__ int warpgroup_id() { return __shfl_sync(FULL_WARP, static_cast<int>(threadIdx.x) / WARPGROUP, 0); }

// --- tensor maps ---

// How a tile is cut out of a tensor in global memory: made by Gpu::tensor_map, handed over as `const __grid_constant__ TensorMap`. On a GPU
// what cuTensorMapEncodeTiled writes, on the host host::TileMap.
struct alignas(128) TensorMap {
  unsigned char bytes[128];
};

// --- mbarriers: 9.7.13.15 ---
//
// 8 bytes of shared memory, 8-byte aligned. A phase is over when `count` arrivals have come and, of the bytes announced by arrivals, all;
// then the next begins. Phases have the parities 0, 1, 0, ...
using Mbarrier = uint64_t;

// By one thread. Before others use it: mbarrier_fence_init by the same thread, then __syncthreads.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, int count MPA_CALLER) {
#ifdef MPA_HOST
  host::mbarrier_init(barrier, count, caller);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
}

// 9.7.13.4: lets the copy engine, another proxy, see initialised barriers. Not seen on the host.
__device__ __forceinline__ void mbarrier_fence_init() {
#ifndef MPA_HOST
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Before the memory of a barrier is used for something else.
__device__ __forceinline__ void mbarrier_invalidate(Mbarrier* barrier MPA_CALLER) {
#ifdef MPA_HOST
  host::mbarrier_invalidate(barrier, caller);
#else
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// One arrival. What this thread has read and written before comes before what follows the wait for this phase.
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier MPA_CALLER) {
#ifdef MPA_HOST
  host::mbarrier_arrive(barrier, 0, caller);
#else
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// The same, and so many bytes of tile loads belong to this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, int bytes MPA_CALLER) {
#ifdef MPA_HOST
  host::mbarrier_arrive(barrier, bytes, caller);
#else
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#endif
}

// Waits until the phase of this parity is over: at once if the phase now under way has the other parity. So on a new barrier parity 1 does
// not wait.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, int parity MPA_CALLER) {
#ifdef MPA_HOST
  host::mbarrier_wait(barrier, parity, caller);
#else
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 over, [%0], %1;\n"  // waits for a while itself
      "@!over bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// --- tile loads: 9.7.9.27.1.2, cp.async.bulk.tensor ---
//
// One thread asks for the map's box at the coordinates (elements, innermost dimension first); its bytes arrive at `to` later, with zeros for
// what lies outside the tensor, and count towards the barrier's phase: always the whole box. `to` is aligned to the pattern of the swizzle:
// 1024 bytes for 128, 512 for 64, 256 for 32. In a row of 128 bytes the 16-byte chunk c of row r comes to lie at c ^ (r % 8); of 64 bytes at
// c ^ (r / 2 % 4); of 32 bytes at c ^ (r / 4 % 2). That is what wgmma expects, and eight rows' chunks lie in different banks.
// Ordinary accesses of these bytes that come before, by any thread, need a barrier with the asking thread; ordinary writes fence_async_proxy
// as well.
#ifdef MPA_HOST
#define MPA_TILE_LOAD(rank, ...)            \
  const int coordinates[] = {__VA_ARGS__}; \
  host::tile_load(to, &map, coordinates, rank, barrier, caller)
#endif

__device__ __forceinline__ void tile_load_2d(void* to, const TensorMap& map, Mbarrier* barrier, int x, int y MPA_CALLER) {
#ifdef MPA_HOST
  MPA_TILE_LOAD(2, x, y);
#else
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
               : "memory");
#endif
}

__device__ __forceinline__ void tile_load_3d(void* to, const TensorMap& map, Mbarrier* barrier, int x, int y, int z MPA_CALLER) {
#ifdef MPA_HOST
  MPA_TILE_LOAD(3, x, y, z);
#else
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
               : "memory");
#endif
}

__device__ __forceinline__ void tile_load_4d(void* to, const TensorMap& map, Mbarrier* barrier, int x, int y, int z, int w MPA_CALLER) {
#ifdef MPA_HOST
  MPA_TILE_LOAD(4, x, y, z, w);
#else
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
#endif
}

// 9.7.13.4: ordinary writes of this thread to shared memory come before what tile loads and wgmma do after the next barrier. By each thread
// that has written. Not seen on the host.
__device__ __forceinline__ void fence_async_proxy() {
#ifndef MPA_HOST
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// --- products of a warpgroup: 9.7.15 ---
//
// D[64][N] (+)= A[64][16] B[16][N] in bf16 with float sums, for N = 64, 80, 96, 128; in int8, k32, at the end of this file. All
// 128 threads issue the same; the product runs on by itself. The order of things:
//   wgmma_fence(d, ...)    what this thread last did to the registers d (and a) comes before
//   wgmma_bf16(d, ...)     any number of them; until the wait d and a must not be touched, nor what the descriptors point at
//   wgmma_commit()         they become a group
//   wgmma_wait<N>(d, ...)  until at most N groups, the youngest, are still under way; then d is there, for the groups that are over
// Sums of one d follow each other without a wait. On the host d is NaN until the wait, and operands are read somewhere in between.
//
// Registers (9.7.15.5.1.1), with warp w of the group, lane = 4 group + quad: d[i] is D[16 w + group + 8 (i / 2 % 2)][8 (i / 4) + 2 quad + i % 2],
// and a[r] holds A[16 w + group + 8 (r % 2)][2 quad + 8 (r / 2), +1]: per warp the layouts of mma_bf16, whose c[4] is four elements of d.

// Which of an operand's dimensions runs through memory: K_MAJOR: A[m][k..] or B[n][k..] lie together. MN_MAJOR: A[m..][k] or B[n..][k] do.
enum Major { K_MAJOR = 0, MN_MAJOR = 1 };

// 9.7.15.5.1.2.2, a matrix in shared memory, in units of 16 bytes:
//   bits 0-13   where it starts          bits 16-29  leading dimension's offset     bits 32-45  stride dimension's offset
//   bits 49-51  base offset: 0, patterns of the swizzle start at multiples of 8 rows
//   bits 62-63  swizzle: 1: 128 bytes, 2: 64, 3: 32 (0: none; not used here)
// ROW: bytes of a row, which is the width of the swizzle; rows lie one after the other as tile_load puts them.
//   K_MAJOR:  rows are m or n, the row has k. stride: from 8 rows to the next 8, 8 ROW. leading: not used. Next k: start + 32 bytes.
//   MN_MAJOR: rows are k, the row has ROW / 2 of m or n. stride: from 8 k to the next 8, 8 ROW. leading: from ROW / 2 of m or n to the next.
//             Next k: start + 16 rows.
template <int ROW>
__device__ __forceinline__ uint64_t wgmma_matrix(const void* start, int leading = 0 MPA_CALLER) {
  static_assert(ROW == 128 || ROW == 64 || ROW == 32, "a swizzle is 128, 64 or 32 bytes wide");
#ifdef MPA_HOST
  const uint32_t address = host::shared_offset(start, caller);
#else
  const uint32_t address = shared_address(start);
#endif
  constexpr uint64_t SWIZZLE = ROW == 128 ? 1 : ROW == 64 ? 2 : 3;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(8 * ROW >> 4) << 32 | SWIZZLE << 62;
}

// The compiler knows nothing of registers that change by themselves: this keeps accesses of them on their side of a fence or wait.
#ifndef MPA_HOST
template <int N>
__device__ __forceinline__ void pin(float (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(int (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}
template <int N>
__device__ __forceinline__ void pin(uint32_t (&r)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++)
    for (int j = 0; j < 4; j++) asm volatile("" : "+r"(r[i][j])::"memory");
}
#endif

// 9.7.15.7.1: before the first product, and after registers of one (d, or a) have been touched: those. `registers`: arrays, by name.
template <class... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
#ifdef MPA_HOST
  host::wgmma_fence({{registers, sizeof(registers)}...});
#else
  (pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// 9.7.15.7.2
__device__ __forceinline__ void wgmma_commit() {
#ifdef MPA_HOST
  host::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// 9.7.15.7.3. `registers`: d and a of the groups that are over.
template <int LEFT, class... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
#ifdef MPA_HOST
  host::wgmma_wait(LEFT, {{registers, sizeof(registers)}...}, host::Location::current());
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
  (pin(registers), ...);
#endif
}

// Arithmetic before this is done before what follows. It is meant to hide behind products that run on, but ptxas moves it behind the wait for
// them, where nothing hides it (seen in the disassembly, 13.0). x depends on all of it and is never below zero: a branch keeps the order.
__device__ __forceinline__ void keep_before([[maybe_unused]] float x) {
#ifndef MPA_HOST
  asm volatile("{\n.reg .pred below;\nsetp.lt.f32 below, %0, 0f00000000;\n@!below bra done;\nnanosleep.u32 1;\ndone:\n}" ::"f"(x) : "memory");
#endif
}

#ifndef MPA_HOST
// Operands of the instruction: the registers of d as a text and as a list, and then numbers for what follows them.
#define MPA_R32                                                                                                                     \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define MPA_R40 MPA_R32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define MPA_R48 MPA_R40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define MPA_R64 MPA_R48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define MPA_D8(i)                                                                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MPA_D32 MPA_D8(0), MPA_D8(8), MPA_D8(16), MPA_D8(24)
#define MPA_D40 MPA_D32, MPA_D8(32)
#define MPA_D48 MPA_D40, MPA_D8(40)
#define MPA_D64 MPA_D48, MPA_D8(48), MPA_D8(56)
#define MPA_WGMMA(SHAPE, REGISTERS, LIST, A, B, SUM, TRANSPOSED)                                             \
  asm volatile("{\n.reg .pred sum;\nsetp.ne.b32 sum, " SUM ", 0;\nwgmma.mma_async.sync.aligned." SHAPE       \
               ".f32.bf16.bf16 {" REGISTERS "}, " A ", " B ", sum, 1, 1, " TRANSPOSED ";\n}"                 \
               : LIST                                                                                        \
               : MPA_INPUTS)
#endif

// 9.7.15.5.2, wgmma.mma_async.m64nNk16, A and B in shared memory. accumulate false: D = A B.
template <int N, Major A, Major B>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate MPA_CALLER) {
  static_assert(N == 64 || N == 80 || N == 96 || N == 128, "see the list above");
#ifdef MPA_HOST
  host::wgmma("wgmma_bf16", {d, N, nullptr, {a, A == MN_MAJOR}, {b, B == MN_MAJOR}, accumulate}, caller);
#else
#define MPA_INPUTS "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(A)), "n"(static_cast<int>(B))
  if constexpr (N == 64) MPA_WGMMA("m64n64k16", MPA_R32, MPA_D32, "%32", "%33", "%34", "%35, %36");
  if constexpr (N == 80) MPA_WGMMA("m64n80k16", MPA_R40, MPA_D40, "%40", "%41", "%42", "%43, %44");
  if constexpr (N == 96) MPA_WGMMA("m64n96k16", MPA_R48, MPA_D48, "%48", "%49", "%50", "%51, %52");
  if constexpr (N == 128) MPA_WGMMA("m64n128k16", MPA_R64, MPA_D64, "%64", "%65", "%66", "%67, %68");
#undef MPA_INPUTS
#endif
}

// The same, A in registers: they stay as they are until the wait.
template <int N, Major B>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate MPA_CALLER) {
  static_assert(N == 64 || N == 80 || N == 96 || N == 128, "see the list above");
#ifdef MPA_HOST
  host::wgmma("wgmma_bf16", {d, N, a, {}, {b, B == MN_MAJOR}, accumulate}, caller);
#else
#define MPA_INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(B))
  if constexpr (N == 64) MPA_WGMMA("m64n64k16", MPA_R32, MPA_D32, "{%32,%33,%34,%35}", "%36", "%37", "%38");
  if constexpr (N == 80) MPA_WGMMA("m64n80k16", MPA_R40, MPA_D40, "{%40,%41,%42,%43}", "%44", "%45", "%46");
  if constexpr (N == 96) MPA_WGMMA("m64n96k16", MPA_R48, MPA_D48, "{%48,%49,%50,%51}", "%52", "%53", "%54");
  if constexpr (N == 128) MPA_WGMMA("m64n128k16", MPA_R64, MPA_D64, "{%64,%65,%66,%67}", "%68", "%69", "%70");
#undef MPA_INPUTS
#endif
}

// --- registers: 9.7.19.5, setmaxnreg ---
//
// By all warps of a warpgroup: from here on it has N registers a thread; more only when others have given theirs up. N: a multiple of 8. The
// kernel's own number comes from __launch_bounds__(threads, 1). Nothing on the host.
template <int N>
__device__ __forceinline__ void registers_up_to() {
#ifndef MPA_HOST
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
__device__ __forceinline__ void registers_down_to() {
#ifndef MPA_HOST
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// --- products of a warpgroup in int8: 9.7.15.5.2, wgmma.mma_async.m64nNk32 ---
//
// D[64][N] (+)= A[64][32] B[32][N], int8 in, int32 sums (exact; they wrap), for N = 128, 256. Both operands lie in shared memory and are K_MAJOR,
// the only way there is for int8. The next 32 of k: start + 32 bytes, as for 16 of bf16. Everything else is as for wgmma_bf16.
#ifndef MPA_HOST
#define MPA_R128                                                                                                                         \
  MPA_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,"    \
          "%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119," \
          "%120,%121,%122,%123,%124,%125,%126,%127"
#define MPA_S8(i)                                                                                                                  \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
#define MPA_S32(i) MPA_S8(i), MPA_S8(i + 8), MPA_S8(i + 16), MPA_S8(i + 24)
#define MPA_WGMMA_S8(SHAPE, REGISTERS, A, B, SUM, ...)                                               \
  asm volatile("{\n.reg .pred sum;\nsetp.ne.b32 sum, " SUM ", 0;\nwgmma.mma_async.sync.aligned." SHAPE \
               ".s32.s8.s8 {" REGISTERS "}, " A ", " B ", sum;\n}"                                    \
               : __VA_ARGS__                                                                          \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
#endif

template <int N>
__device__ __forceinline__ void wgmma_s8(int (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate MPA_CALLER) {
  static_assert(N == 128 || N == 256, "see the list above");
#ifdef MPA_HOST
  host::wgmma("wgmma_s8", {d, N, nullptr, {a, false}, {b, false}, accumulate, true}, caller);
#else
  if constexpr (N == 128) MPA_WGMMA_S8("m64n128k32", MPA_R64, "%64", "%65", "%66", MPA_S32(0), MPA_S32(32));
  if constexpr (N == 256) MPA_WGMMA_S8("m64n256k32", MPA_R128, "%128", "%129", "%130", MPA_S32(0), MPA_S32(32), MPA_S32(64), MPA_S32(96));
#endif
}
