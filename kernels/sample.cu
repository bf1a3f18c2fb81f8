// The next token of each row of logits: the largest, or one drawn with temperature and top-p; and the log-probability of given tokens. The same
// choice as the CPU's (src/ops/sample.rs), for which weights and sums are f64 here as there.
//
// logits [., V] f32; draw i reads row rows[i] and draws[i]. weight = exp((logit - max) / temperature), rank = by weight, largest first, among equals the
// lower id first. The nucleus is the shortest start of the ranking with top_p of the whole mass; the token is where the mass up to and with it exceeds
// uniform * (mass of the nucleus). With top_p = 1 the nucleus is everything and ids themselves are the ranking.
//
// One block of 512 threads a row. Nothing is sorted: both ends are found by bisection, first over the bits of a weight, then over ids among the tokens of
// that weight, about 80 sums each. Summed are only candidates: tokens whose weight is at least (1 - top_p) / V of the mass, as all others together are
// less than what may be left out. A thread keeps its own candidates in a strip of `scratch`, so a sum has the same order every time, and a larger
// set of tokens never has the smaller sum: the bisections are exact about their own sums. The CPU adds in another order, so the token can differ where
// uniform falls within rounding (about 1e-13 of the mass) of a token's end.
// With top_p = 1 all tokens would be candidates: a thread then keeps the running sums of its own weights, so that the mass up to an id is one number
// a thread, and one bisection over ids finds the token.
//
// Bytes: greedy 4 V a row: V = 49280 (SmolVLM), 64 rows: 12.6 MB, 3.8 us at 3.35 TB/s (H100), but one row alone is bound by its one processor, some 3 us from
// L2. Drawing reads the row twice more from L2, with V exponentials in f64 (30 FLOPs each: 12 us on an H100; 32 times that on sm_89, whose processors
// do 2 operations in f64 a clock in place of 64), then 160 sums over the candidates, some 0.3 us each while a thread has few. With top_p = 1 it
// reads the row once more, keeps 8 V in L2, and takes log2(V) sums of one number a thread.
// Reached: not yet run on a GPU.
// Considered: a sort of the candidates (a buffer that must hold V in the worst case, and a second way for when it does not); a radix histogram of mass
// (float atomics, or fixed point); several blocks a row (a second launch; decoding has rows enough, and greedy is 1 % of a step).
#include "common.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr uint64_t BAD = ~0ull;          // rank of what is not finite
constexpr uint32_t BAD_TOKEN = ~0u;      // reported for a row with such a logit
constexpr int64_t ONE = 1023ll << 52;    // bits of the double 1, the largest weight

struct Draw {
  double uniform;
  float temperature, top_p;
};

struct alignas(16) Candidate {
  double weight;
  uint32_t id;
};

// The result of op over all threads, for every thread, in one order.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T x, Op op) {
  T* scratch = shared_memory<T>();
  for (int bit = 16; bit > 0; bit /= 2) x = op(x, __shfl_xor_sync(FULL_WARP, x, bit));
  if (lane_id() == 0) scratch[warp_id()] = x;
  __syncthreads();
  x = scratch[lane_id() % WARPS];
  for (int bit = WARPS / 2; bit > 0; bit /= 2) x = op(x, __shfl_xor_sync(FULL_WARP, x, bit));
  __syncthreads();  // all have read scratch
  return x;
}

__device__ __forceinline__ double block_total(double x) {
  return block_reduce(x, [](double a, double b) { return a + b; });
}

// Orders logits, the first of equals above the others: the id is in the low half, inverted. BAD, above all, for what is not finite.
__device__ __forceinline__ uint64_t rank(float logit, int id) {
  // Floats in the order of unsigned integers; -0 counts as 0.
  uint32_t bits = __float_as_uint(logit + 0.0f);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return fabsf(logit) < INFINITY ? static_cast<uint64_t>(bits) << 32 | ~static_cast<uint32_t>(id) : BAD;
}

// The highest rank of a row.
__device__ __forceinline__ uint64_t largest(const float* x, int cols) {
  uint64_t best = 0;
  // mutant: condition: false sends every width there, which only takes longer.
  if (cols % 4 == 0) {
    for (int c = threadIdx.x * 4; c < cols; c += 4 * THREADS) {
      const Pack<float, 4> a = load_pack<4>(x + c);
      for (int i = 0; i < 4; i++) best = max(best, rank(a[i], c + i));
    }
  } else {  // rows are not aligned
    for (int c = threadIdx.x; c < cols; c += THREADS) best = max(best, rank(x[c], c));
  }
  return block_reduce(best, [](uint64_t a, uint64_t b) { return max(a, b); });
}

// exp((logit - max) / temperature) of a whole row; keep(c, the thread's own sum up to c). Element by element: exponentials in f64 take longer than
// any load.
template <class Keep>
__device__ __forceinline__ double total_mass(const float* x, int cols, double max, double temperature, Keep keep) {
  double sum = 0.0;
#pragma unroll 1
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    sum += exp((x[c] - max) / temperature);
    keep(c, sum);
  }
  return block_total(sum);
}

// From `in`, which is enough, towards `out`, which is not: the last that is enough. Both kinds lie together.
template <class T, class Enough>
__device__ __forceinline__ T last_enough(T in, T out, Enough enough) {
  while (const T half = (out - in) / 2) {
    if (enough(in + half)) {
      in += half;
    } else {
      out = in + half;
    }
  }
  return in;
}

// The token where none is left out. sums [V]: of the weights up to an id, those that are in the same thread.
__device__ __forceinline__ uint32_t drawn_of_all(double* sums, const float* x, int cols, double max, double temperature, double uniform) {
  const double target = uniform * total_mass(x, cols, max, temperature, [=](int c, double sum) { sums[c] = sum; });
  return last_enough(cols - 1, -1, [=](int id) {
    const int above = id - static_cast<int>(threadIdx.x);  // the thread's first id
    return block_total(above < 0 ? 0.0 : sums[id - above % THREADS]) > target;
  });
}

// The start of the ranking that ends with this weight and, among its equals, this id.
struct End {
  int64_t level;
  uint32_t id;
};

// A thread's candidates, and with the other threads' the ranking of the row.
struct Candidates {
  Candidate* strip;  // every THREADS-th is this thread's
  int count;
  int cols;

  __device__ __forceinline__ void add(double weight, int id) { strip[static_cast<int64_t>(count++) * THREADS] = {weight, static_cast<uint32_t>(id)}; }

  static __device__ __forceinline__ int64_t level(double weight) {
    int64_t bits;
    memcpy(&bits, &weight, 8);  // of positive numbers, in their order
    return bits;
  }

  // Of the whole block: all threads must call it.
  __device__ __forceinline__ double mass(End end) const {
    double sum = 0.0;
    for (int i = 0; i < count; i++) {
      const Candidate c = strip[static_cast<int64_t>(i) * THREADS];
      const int64_t at = level(c.weight);
      if (at > end.level || (at == end.level && c.id <= end.id)) sum += c.weight;
    }
    return block_total(sum);
  }

  // The shortest start whose mass is enough; everything is taken to be.
  template <class Enough>
  __device__ __forceinline__ End shortest(Enough enough) const {
    const int64_t level = last_enough<int64_t>(0, ONE + 1, [&](int64_t level) { return enough(mass({level, BAD_TOKEN})); });
    const auto up_to = [&](int id) { return enough(mass({level, static_cast<uint32_t>(id)})); };  // of the tokens of that level
    return {level, static_cast<uint32_t>(last_enough(cols - 1, -1, up_to))};
  }
};

extern "C" __global__ void __launch_bounds__(512) sample_forward_f32(uint32_t* tokens, const float* logits, const uint32_t* rows, const Draw* draws,
                                                                      Candidate* scratch, uint64_t strip_length, int cols) {
  const float* x = logits + static_cast<int64_t>(rows[blockIdx.x]) * cols;
  const uint64_t best = largest(x, cols);
  const uint32_t first = ~static_cast<uint32_t>(best);
  const Draw draw = draws[blockIdx.x];
  if (best == BAD || draw.temperature == 0.0f) {
    if (threadIdx.x == 0) tokens[blockIdx.x] = best == BAD ? BAD_TOKEN : first;
    return;
  }

  const double max = x[first], temperature = draw.temperature, top_p = draw.top_p;
  scratch += blockIdx.x * strip_length * THREADS;
  if (top_p == 1.0) {
    const uint32_t token = drawn_of_all(reinterpret_cast<double*>(scratch), x, cols, max, temperature, draw.uniform);
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
    return;
  }

  const double total = total_mass(x, cols, max, temperature, [](int, double) {});
  Candidates candidates = {scratch + threadIdx.x, 0, cols};
  const double least = log((1.0 - top_p) * total / cols);
  for (int c = threadIdx.x; c < cols; c += THREADS) {
    const double z = (x[c] - max) / temperature;
    // mutant: condition, flip: what lies below, or just there, is never reached: it only takes longer.
    if (z >= least) candidates.add(exp(z), c);
  }

  const End nucleus = candidates.shortest([=](double mass) { return mass >= top_p * total; });
  // Always less than the mass of the nucleus, as uniform < 1: the token is in it.
  const double target = draw.uniform * candidates.mass(nucleus);
  const End token = candidates.shortest([=](double mass) { return mass > target; });
  if (threadIdx.x == 0) tokens[blockIdx.x] = token.id;
}

// out[r] = log softmax(logits[r])[tokens[r]]; NaN for a row with a logit that is not finite.
extern "C" __global__ void __launch_bounds__(512) sample_log_probability_forward_f32(double* out, const float* logits, const uint32_t* tokens, int cols) {
  const float* x = logits + static_cast<int64_t>(blockIdx.x) * cols;
  const uint64_t best = largest(x, cols);
  if (best == BAD) {
    // mutant: condition: on the host what is not written is NaN as well.
    if (threadIdx.x == 0) out[blockIdx.x] = NAN;
    return;
  }
  const double max = x[~static_cast<uint32_t>(best)];
  const double total = total_mass(x, cols, max, 1.0, [](int, double) {});
  if (threadIdx.x == 0) out[blockIdx.x] = x[tokens[blockIdx.x]] - max - log(total);
}
