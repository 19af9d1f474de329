// LinUCB for one purpose, written by hand: what the native kernel is measured against.
//
// float32, disjoint models, constant beta, every adapter resident; (15, 16) or (64, 32), both known
// to the compiler. The layout ideas are the kernel's: triangles, and nothing else of an inverse,
// packed in fours of four adapters side by side against weights that all share, one lane after the
// other with its statistics in cache, rank-one updates, and one thread per core. Everything else is
// left out: schedules, forced exploration, costs, admission, booking, the sums that a refresh
// reads, what is not a number.
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
using Four = polar::Four<float>;
constexpr int kWidth = polar::kWidth<float>;
constexpr int kStep = 4 * kWidth;  // from one four of an adapter to the next

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
    index_.resize(kPadded, -kInf<float>), squared_.resize(kPadded), mean_.resize(kPadded);
    weight_.resize(kGroups * 4), x_.resize(D);
    for (int j = 0; j < 4; ++j)
      for (int c = 0; c < 4; ++c) diagonal_[j][c] = c < j ? 2.f : c == j ? 1.f : 0.f;
  }

  void serve(const Stream& s, int64_t lane) {
    float *inverse = s.inverse + lane * N * D * D, *theta = s.theta + lane * N * D;
    for (int i = 0; i < N; ++i) begin(i, inverse + i * D * D, theta + i * D);
    for (int64_t t = lane * s.rounds; t < (lane + 1) * s.rounds; ++t) {
      const int a = choose(s.context + t * D, s.alpha);
      s.chosen[t] = a;
      learn(a, s.utility[t * N + a] + s.noise[t]);
    }
    for (int i = 0; i < N; ++i) end(i, inverse + i * D * D, theta + i * D);
  }

 private:
  static constexpr int kPadded = (N + kWidth - 1) / kWidth * kWidth;
  static constexpr int kGroups = D / 4 * (D / 4 + 1) / 2 * 4;  // fours of a triangle

  int choose(const float* context, float alpha) {
    std::memcpy(x_.get(), context, sizeof(float) * D);
    const float* x = x_.get();
    float *weight = weight_.get(), *next = weight;
#pragma GCC unroll 16
    for (int r = 0; r < D; ++r) {
      const Four own = Four{} + x[r], both = own + own;
      for (int c = 0; c < r / 4 * 4; c += 4, next += 4)
        polar::store4(next, both * polar::load4(x + c));
      polar::store4(next, own * polar::load4(x + r / 4 * 4) * diagonal_[r % 4]);
      next += 4;
    }
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
    float *here = place(triangle_.get(), kGroups, a), *theta = place(estimate_.get(), D / 4, a);
    const float* x = x_.get();
    float v[D] = {}, kept[D];
    const float* from = here;
#pragma GCC unroll 8
    for (int b = 0; b < D / 4; ++b) {
      Four part[4] = {};
#pragma GCC unroll 8
      for (int c = 0; c <= b; ++c) {
        Four row[4], out = {};
        for (int j = 0; j < 4; ++j) {
          row[j] = polar::load4(from + (j * (b + 1) + c) * kStep);
          out += x[4 * b + j] * row[j];
          if (c < b) part[j] += row[j] * polar::load4(x + 4 * c);
        }
        polar::store4(v + 4 * c, polar::load4(v + 4 * c) + out);
      }
      polar::store4(v + 4 * b, polar::load4(v + 4 * b) + polar::sums_of_four<float>(part));
      from += 4 * (b + 1) * kStep;
    }
    const float shrink = 1.f / (1.f + std::max(squared_[a], 0.f));
    const float step = (reward - mean_[a]) * shrink;
    for (int c = 0; c < D; c += 4, theta += kStep) {
      polar::store4(kept + c, polar::load4(v + c) * shrink);
      polar::store4(theta, polar::load4(theta) + step * polar::load4(v + c));
    }
#pragma GCC unroll 16
    for (int r = 0; r < D; ++r)
#pragma GCC unroll 4
      for (int c = 0; c <= r; c += 4, here += kStep)
        polar::store4(here, polar::load4(here) - kept[r] * polar::load4(v + c));
  }

  static float* place(float* array, int groups, int i) {
    const int within = i % kWidth;
    return array + i / kWidth * groups * kStep + within % 4 * kWidth + within / 4 * 4;
  }

  void begin(int i, const float* inverse, const float* theta) {
    float* to = place(triangle_.get(), kGroups, i);
    for (int r = 0; r < D; ++r)
      for (int c = 0; c <= r; c += 4, to += kStep)
        polar::store4(to, polar::load4(inverse + r * D + c));
    to = place(estimate_.get(), D / 4, i);
    for (int c = 0; c < D; c += 4, to += kStep) polar::store4(to, polar::load4(theta + c));
  }

  void end(int i, float* inverse, float* theta) {
    const float* from = place(triangle_.get(), kGroups, i);
    for (int r = 0; r < D; ++r)
      for (int c = 0; c <= r; c += 4, from += kStep) {
        polar::store4(inverse + r * D + c, polar::load4(from));
        if (c + 4 <= r)
          for (int k = 0; k < 4; ++k) inverse[(c + k) * D + r] = from[k];
      }
    from = place(estimate_.get(), D / 4, i);
    for (int c = 0; c < D; c += 4, from += kStep) polar::store4(theta + c, polar::load4(from));
  }

  template <int groups> static void products(const float* array, const float* weight, float* out) {
    for (int b = 0; b < kPadded; b += kWidth) {
      Numbers part[4] = {};
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g, array += kStep) {
        const Numbers w = polar::repeat4(weight + 4 * g);
        for (int k = 0; k < 4; ++k) part[k] += load(array + k * kWidth) * w;
      }
      for (int k = 0; k < 4; ++k) part[k] = polar::sum4(part[k]);
      store(out + b, polar::one_of_each<float>(part));
    }
  }

  Array<float> triangle_, estimate_, index_, squared_, mean_, weight_, x_;
  Four diagonal_[4];
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
