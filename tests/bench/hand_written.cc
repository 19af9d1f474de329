// LinUCB for one purpose, written by hand: what the native kernel is measured against.
//
// float32, disjoint models, constant beta, every adapter resident; (15, 16) or (64, 32), both known
// to the compiler. The layout ideas are the kernel's: triangles packed in fours of four adapters
// side by side against weights that all share, one lane after the other with its statistics in
// cache, rank-one updates, and one thread per core. Everything else is left out: schedules, forced
// exploration, costs, admission, booking, the sums that a refresh reads, what is not a number.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "vectors.h"

namespace {

using polar::Array;
using polar::kInf;
using polar::load;
using polar::store;
using Numbers = polar::Vec<float>;
constexpr int kWidth = polar::kWidth<float>;

struct Stream {
  const float *context, *utility, *noise;  // [lanes, rounds, D], [lanes, rounds, N], [lanes, rounds]
  float *inverse, *theta;                  // [lanes, N, D, D], [lanes, N, D]
  int32_t* chosen;                         // [lanes, rounds]
  int64_t rounds;
  float alpha;
};

template <int N, int D> class Loop {
 public:
  Loop() {
    triangle_.resize(kPadded * kGroups * 4), estimate_.resize(kPadded * D);
    inverse_.resize(N * D * D), theta_.resize(N * D);
    index_.resize(kPadded, -kInf<float>), squared_.resize(kPadded), mean_.resize(kPadded);
    weight_.resize(kGroups * 4), twice_.resize(kGroups * 4), x_.resize(D);
    for (int r = 0, k = 0; r < D; ++r)
      for (int c = 0; c < (r / 4 + 1) * 4; ++c, ++k) twice_[k] = c < r ? 2.f : c == r ? 1.f : 0.f;
  }

  void serve(const Stream& s, int64_t lane) {
    std::memcpy(inverse_.get(), s.inverse + lane * N * D * D, sizeof(float) * N * D * D);
    std::memcpy(theta_.get(), s.theta + lane * N * D, sizeof(float) * N * D);
    for (int i = 0; i < N; ++i) spread(i);
    for (int64_t t = lane * s.rounds; t < (lane + 1) * s.rounds; ++t) {
      const int a = choose(s.context + t * D, s.alpha);
      s.chosen[t] = a;
      learn(a, s.utility[t * N + a] + s.noise[t]);
    }
    std::memcpy(s.inverse + lane * N * D * D, inverse_.get(), sizeof(float) * N * D * D);
    std::memcpy(s.theta + lane * N * D, theta_.get(), sizeof(float) * N * D);
  }

 private:
  static constexpr int kPadded = (N + kWidth - 1) / kWidth * kWidth;
  static constexpr int kGroups = D / 4 * (D / 4 + 1) / 2 * 4;  // fours of a triangle

  int choose(const float* context, float alpha) {
    std::memcpy(x_.get(), context, sizeof(float) * D);
    const float* x = x_.get();
    float *weight = weight_.get(), *next = weight;
    for (int r = 0; r < D; ++r)
      for (int c = 0; c <= r; c += 4, next += 4) polar::store4(next, x[r] * polar::load4(x + c));
    for (int k = 0; k < kGroups * 4; k += kWidth)
      store(weight + k, load(weight + k) * load(twice_.get() + k));
    products<kGroups>(triangle_.get(), weight, squared_.get());
    products<D / 4>(estimate_.get(), x, mean_.get());
    for (int i = 0; i < kPadded; i += kWidth) {
      const Numbers squared = load(squared_.get() + i);
      const Numbers known = squared < 0.f ? Numbers{} : squared;
      store(index_.get() + i, load(mean_.get() + i) + alpha * polar::roots(known));
    }
    for (int i = N; i < kPadded; ++i) index_[i] = -kInf<float>;
    return polar::first_max(index_.get(), kPadded).index;
  }

  void learn(int a, float reward) {
    float *inverse = inverse_.get() + a * D * D, *theta = theta_.get() + a * D;
    const float* x = x_.get();
    constexpr int kParts = D / kWidth;
    Numbers v[kParts][2] = {};
    for (int r = 0; r < D; r += 2)
      for (int p = 0; p < kParts; ++p)
        for (int j = 0; j < 2; ++j) v[p][j] += x[r + j] * load(inverse + (r + j) * D + p * kWidth);
    const float shrink = 1.f / (1.f + std::max(squared_[a], 0.f));
    const float step = (reward - mean_[a]) * shrink;
    float kept[D];
    for (int p = 0; p < kParts; ++p) {
      v[p][0] += v[p][1];
      store(kept + p * kWidth, v[p][0] * shrink);
      store(theta + p * kWidth, load(theta + p * kWidth) + step * v[p][0]);
    }
    for (int r = 0; r < D; ++r)
      for (int p = 0; p < kParts; ++p) {
        float* here = inverse + r * D + p * kWidth;
        store(here, load(here) - kept[r] * v[p][0]);
      }
    spread(a);
  }

  static float* place(float* array, int groups, int i) {
    const int within = i % kWidth;
    return array + i / kWidth * groups * 4 * kWidth + within % 4 * kWidth + within / 4 * 4;
  }

  void spread(int i) {
    float* to = place(triangle_.get(), kGroups, i);
    for (int r = 0; r < D; ++r)
      for (int c = 0; c <= r; c += 4, to += 4 * kWidth)
        polar::store4(to, polar::load4(inverse_.get() + (i * D + r) * D + c));
    to = place(estimate_.get(), D / 4, i);
    for (int c = 0; c < D; c += 4, to += 4 * kWidth)
      polar::store4(to, polar::load4(theta_.get() + i * D + c));
  }

  template <int groups> static void products(const float* array, const float* weight, float* out) {
    for (int b = 0; b < kPadded; b += kWidth) {
      Numbers part[4] = {};
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g, array += 4 * kWidth) {
        const Numbers w = polar::repeat4(weight + 4 * g);
        for (int k = 0; k < 4; ++k) part[k] += load(array + k * kWidth) * w;
      }
      for (int k = 0; k < 4; ++k) part[k] = polar::sum4(part[k]);
      store(out + b, polar::one_of_each<float>(part));
    }
  }

  Array<float> triangle_, estimate_, inverse_, theta_, index_, squared_, mean_, weight_, twice_, x_;
};

template <int N, int D> void serve(const Stream& stream, int64_t first, int64_t last) {
  Loop<N, D> loop;
  for (int64_t lane = first; lane < last; ++lane) loop.serve(stream, lane);
}

}  // namespace

// Serves all lanes' rounds on `threads` threads; statistics go on from what they hold. Returns
// whether the shape is one that it was written for.
extern "C" bool hand_written(const float* context, const float* utility, const float* noise,
                             float* inverse, float* theta, int32_t* chosen, int64_t lanes,
                             int64_t rounds, int64_t adapters, int64_t features, float alpha,
                             int64_t threads) {
  const Stream stream{context, utility, noise, inverse, theta, chosen, rounds, alpha};
  const bool small = adapters == 15 && features == 16, large = adapters == 64 && features == 32;
  if (!small && !large) return false;
  std::vector<std::thread> pool;
  for (int64_t k = 0; k < threads; ++k)
    pool.emplace_back([&, k] {
      const int64_t first = lanes * k / threads, last = lanes * (k + 1) / threads;
      small ? serve<15, 16>(stream, first, last) : serve<64, 32>(stream, first, last);
    });
  for (std::thread& one : pool) one.join();
  return true;
}
