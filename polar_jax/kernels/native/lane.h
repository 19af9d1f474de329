// One lane: its inputs, its statistics in the layouts that a round reads, and its decisions.
//
// Scores need x^T A_i x for every adapter i. It is the product of A_i's lower triangle with
// w = (2 - [r = c]) x_r x_c, which all adapters share. Rows of the triangle are padded to fours,
// and fours of several adapters lie side by side, so that sums need no shuffles in the loop.
// The triangle is all that is kept of A_i: half the memory, and a fast cache holds more of it.
#pragma once

#include <cmath>
#include <vector>

#include "pooled.h"

namespace polar {

// Order of `numbers`; controllers append theirs.
enum Number { kAlpha, kRidge, kSigma, kDelta, kThetaBound, kCostWeight, kMargin, kFeatures,
              kActive, kOwn };
enum Selection { kArgmax, kQuota, kRelevant };
enum ControllerKind { kFixed, kLru, kLfu, kGdsf, kValue, kExperts };

struct Sizes {
  int64_t rounds, adapters, features, numbers, memory_float, memory_int;
  int64_t packed() const { return features * (features + 1) / 2; }
};

struct Attributes {
  int64_t selection, controller;
  bool theory, binary, pooled;
};

// What one lane is given and what it gives back; arrays as `native_rounds.py` passes them.
template <typename T> struct Lane {
  const T *context, *utility, *noise;
  const int32_t* span;  // start, stop, quota
  const T* numbers;
  const T *paging_cost, *switch_cost, *paging_ms, *size;
  const bool* active;
  T *precision_inv, *precision_recent, *reward_recent, *theta;
  int32_t* pulls;
  bool *resident, *pending;
  T* memory_float;
  int32_t* memory_int;
  int32_t* adapter;
  bool *forced, *sets;
  T *switched, *switched_ms;
  int32_t* loads;
  T *pooled_inverse, *pooled_theta;
};

// What the router knows about one request.
template <typename T> struct Scores {
  Array<T> mean, width, beta, index, net;
};

template <typename T> class Statistics {
 public:
  Statistics(const Sizes& sizes, bool pooled)
      : pooled_(pooled), common_(sizes.features), n_(sizes.adapters), d_(sizes.features),
        d_pad_(round_up(d_, kWidth<T>)), padded_(round_up(n_, kWidth<T>)),
        theta_groups_((d_ + 3) / 4) {
    for (int64_t r = 0; r < d_; ++r) row_.push_back(groups_), groups_ += r / 4 + 1;
    numbers_ = round_up(groups_ * 4, kWidth<T>);
    triangle_.resize(padded_ * groups_ * 4), estimate_.resize(padded_ * theta_groups_ * 4);
    recent_.resize(n_ * numbers_), sum_.resize(n_ * d_pad_);
    for (Array<T>* one : {&v_, &scaled_}) one->resize(d_pad_);
    for (Array<T>* one : {&twice_, &once_, &prior_}) one->resize(numbers_);
    for (Request& one : requests_) {
      one.x.resize(d_pad_), one.weight.resize(numbers_);
      one.squared.resize(padded_), one.mean.resize(padded_);
    }
    row_of_.resize(numbers_, 0), column_of_.resize(numbers_, 0);
    for (int64_t r = 0; r < d_; ++r)
      for (int64_t c = 0; c <= r; ++c) {
        const int64_t k = row_[r] * 4 + c;
        twice_[k] = c < r ? T(2) : T(1), once_[k] = T(1) / twice_[k];
        row_of_[k] = r, column_of_[k] = c;
      }
    for (Array<T>* one : {&scores.mean, &scores.width, &scores.beta, &scores.index, &scores.net})
      one->resize(padded_, -kInf<T>);
    shrunk_.resize(padded_), touched_.resize(padded_);
    floor_.resize(padded_, -kInf<T>);
  }

  int64_t padded() const { return padded_; }

  void begin(const Lane<T>& lane) {
    if (pooled_) common_.begin(lane.pooled_inverse, lane.pooled_theta);
    for (int64_t i = 0; i < n_; ++i) {
      T* to = place(triangle_.get(), groups_, i);
      const T* row = lane.precision_inv + i * d_ * d_;
      for (int64_t r = 0; r < d_; ++r, row += d_)
        for (int64_t c = 0; c <= r; c += 4, to += kStep) pad(to, row + c, d_ - c, 4);
      to = place(estimate_.get(), theta_groups_, i);
      for (int64_t c = 0; c < d_; c += 4, to += kStep) pad(to, lane.theta + i * d_ + c, d_ - c, 4);
      pad(sum_.get() + i * d_pad_, lane.reward_recent + i * d_, d_, d_pad_);
      const T* from = lane.precision_recent + i * (d_ * (d_ + 1) / 2);
      for (int64_t r = 0; r < d_; ++r)
        for (int64_t c = 0; c <= r; ++c) recent_[i * numbers_ + row_[r] * 4 + c] = *from++;
      floor_[i] = lane.active[i] ? T(0) : -kInf<T>;
      touched_[i] = lane.pulls[i] == 0 ? T(0) : T(1);
      scores.beta[i] = lane.numbers[kAlpha];
    }
  }

  void end(Lane<T>& lane) const {
    if (pooled_) common_.end(lane.pooled_inverse, lane.pooled_theta);
    for (int64_t i = 0; i < n_; ++i) {
      const T* four = place(triangle_.get(), groups_, i);
      T* inverse = lane.precision_inv + i * d_ * d_;
      for (int64_t r = 0; r < d_; ++r)
        for (int64_t c = 0; c <= r; c += 4, four += kStep)
          for (int64_t k = c; k < c + 4 && k < d_; ++k) {
            inverse[r * d_ + k] = four[k - c];
            // Of a four on the diagonal the other rows have their own.
            if (c + 4 <= r) inverse[k * d_ + r] = four[k - c];
          }
      four = place(estimate_.get(), theta_groups_, i);
      for (int64_t c = 0; c < d_; ++c) {
        lane.theta[i * d_ + c] = four[c / 4 * kStep + c % 4];
        lane.reward_recent[i * d_ + c] = sum_[i * d_pad_ + c];
      }
      T* to = lane.precision_recent + i * (d_ * (d_ + 1) / 2);
      for (int64_t r = 0; r < d_; ++r)
        for (int64_t c = 0; c <= r; ++c) *to++ = recent_[i * numbers_ + row_[r] * 4 + c];
    }
  }

  // How many requests are looked at together.
  int64_t together() const { return together_; }

  // Products of every adapter with the next `count` requests, whose statistics are read once for
  // all of them; D is the number of features where it is known.
  template <int D> void look(const T* contexts, int64_t count) {
    const int64_t d = D > 0 ? D : d_;
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(requests_[r].x.get(), contexts + r * d, sizeof(T) * static_cast<size_t>(d));
      multiply<D>(requests_[r], d);
    }
    for (int64_t b = 0; b < padded_; b += kWidth<T>) {
      int64_t r = 0;
      for (; r + 1 < count; r += 2) products<D, 2>(requests_ + r, b);
      if (r < count) products<D, 1>(requests_ + r, b);
    }
  }

  // The products of adapter `a` anew, to the same bits as `look` has them.
  template <int D> void look_again(int64_t a, int64_t request) {
    Request& one = requests_[request];
    const int64_t groups = D > 0 ? groups_of(D) : groups_;
    const int64_t theta_groups = D > 0 ? (D + 3) / 4 : theta_groups_;
    one.squared[a] = product(place(triangle_.get(), groups, a), one.weight.get(), groups);
    one.mean[a] = product(place(estimate_.get(), theta_groups, a), one.x.get(), theta_groups);
  }

  // Means, widths and indices of every adapter for a request that was looked at.
  template <int D> void score(const Lane<T>& lane, int64_t request, bool theory) {
    const int64_t d_pad = D > 0 ? round_up(D, kWidth<T>) : d_pad_;
    Request& now = requests_[request];
    // Ties of the mathematics are ties of the numbers: the untouched share one.
    const T untouched = dot(now.x.get(), now.x.get(), d_pad) / lane.numbers[kRidge];
    if (theory) theory_beta(lane);
    const T* squares = now.squared.get();
    const T* raw = pooled_ ? with_common_prior(now, lane.numbers[kRidge]) : now.mean.get();
    const T *touched = touched_.get(), *floor = floor_.get();
    const T* beta = scores.beta.get();
    T *means = scores.mean.get(), *widths = scores.width.get(), *index = scores.index.get();
    for (int64_t i = 0, padded = padded_; i < padded; i += kWidth<T>) {
      Vec<T> squared = load(squares + i);
      squared = load(touched + i) > T(0) ? squared : Vec<T>{} + untouched;
      // As everywhere: what is not a number stays so.
      squared = squared < T(0) ? Vec<T>{} : squared;
      const Vec<T> root = roots(squared), low = load(floor + i);
      const Vec<T> mean = low < T(0) ? low : load(raw + i);
      store(means + i, mean);
      store(widths + i, root);
      store(index + i, mean + load(beta + i) * root);
    }
    for (int64_t i = n_; i < padded_; ++i) scores.index[i] = -kInf<T>;
  }

  // Adds one observation to adapter `a` (Sherman and Morrison 1950).
  template <int D> void observe(Lane<T>& lane, int64_t request, int64_t a, T reward) {
    const int64_t d = D > 0 ? D : d_, d_pad = D > 0 ? round_up(D, kWidth<T>) : d_pad_;
    // Pointers of our own: the compiler must not fear that a store moves them.
    T* here = place(triangle_.get(), D > 0 ? groups_of(D) : groups_, a);
    T *theta = place(estimate_.get(), (d + 3) / 4, a), *total = sum_.get() + a * d_pad;
    T *v = v_.get(), *scaled = scaled_.get(), *recent = recent_.get() + a * numbers_;
    const Request& now = requests_[request];
    const T *x = now.x.get(), *weight = now.weight.get(), *once = once_.get();
    // Not x^T V^-1 x of the scores: with a tiny ridge only what is made of the same v keeps the
    // inverse positive in float32.
    const T shrink = T(1) / (T(1) + direction<D>(here, x, v)), root = std::sqrt(shrink);
    const T step = (reward - now.mean[a]) * shrink;
    for (int64_t k = 0; k < d_pad; k += kWidth<T>) {
      store(scaled + k, load(v + k) * root);
      store(total + k, load(total + k) + reward * load(x + k));
    }
    for (int64_t c = 0; c < d; c += 4, theta += kStep)
      store4(theta, load4(theta) + step * load4(v + c));
    // A vector's product with itself: the halves of a four on the diagonal stay the same to the bit,
    // and a difference between them would never go away.
#pragma GCC unroll 16
    for (int64_t r = 0; r < d; ++r)
#pragma GCC unroll 4
      for (int64_t c = 0; c <= r; c += 4, here += kStep)
        store4(here, load4(here) - scaled[r] * load4(scaled + c));
    for (int64_t k = 0, numbers = numbers_; k < numbers; k += kWidth<T>)
      store(recent + k, fused(load(weight + k), load(once + k), load(recent + k)));
    touched_[a] = 1;
    lane.pulls[a] += 1;
    if (pooled_) common_.observe(x, reward);
  }

  Scores<T> scores;

 private:
  // A request, and what its scores are made of.
  struct Request {
    Array<T> x, weight, squared, mean;
  };
  static constexpr int64_t kStep = 4 * kWidth<T>;  // from one four of an adapter to the next
  static constexpr int64_t kMost = 2;  // requests looked at together, `TOGETHER` of native_rounds.py

  using Integer = Whole<T>;

  // Where the numbers of adapter `i` begin in an array of fours. A block is four vectors of fours;
  // its adapters are numbered so that `products` finds their sums in order.
  template <typename P> static P* place(P* array, int64_t groups, int64_t i) {
    const int64_t within = i % kWidth<T>;
    return array + i / kWidth<T> * groups * kStep + within % 4 * kWidth<T> + within / 4 * 4;
  }

  // v = V^-1 x of one adapter, and x^T v, from its triangle. A block of four rows and columns is
  // read once for both of its products: its transpose lies on the other side of the diagonal.
  template <int D> T direction(const T* from, const T* x, T* v) const {
    const int64_t d = D > 0 ? D : d_, blocks = (d + 3) / 4;
    // Numbers that the compiler can keep in registers, where it knows how many they are.
    constexpr bool kLocal = D > 0 && D <= 32;
    T local[kLocal ? D : 4];
    T* sum = kLocal ? local : v;
#pragma GCC unroll 8
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t rows = D > 0 || d - 4 * b >= 4 ? 4 : d - 4 * b;
      const T* row[4];
      Four<T> weight[4], part[4] = {};
      for (int64_t j = 0; j < 4; ++j) {
        // What there is no row for has weight 0.
        row[j] = from + (j < rows ? j : 0) * (b + 1) * kStep;
        weight[j] = Four<T>{} + (j < rows ? x[4 * b + j] : T(0));
      }
      from += rows * (b + 1) * kStep;
#pragma GCC unroll 8
      for (int64_t c = 0; c <= b; ++c) {
        Four<T> number[4];
        for (int j = 0; j < 4; ++j) number[j] = load4(row[j] + c * kStep);
        const Four<T> low = fused(number[1], weight[1], number[0] * weight[0]);
        const Four<T> high = fused(number[3], weight[3], number[2] * weight[2]);
        if (c == b) {
          store4(sum + 4 * b, (low + high) + sums_of_four<T>(part));
        } else {
          store4(sum + 4 * c, load4(sum + 4 * c) + (low + high));
          for (int64_t j = 0; j < rows; ++j)
            part[j] = fused(number[j], load4(x + 4 * c), part[j]);
        }
      }
    }
    Four<T> product = {};
#pragma GCC unroll 8
    for (int64_t b = 0; b < blocks; ++b) {
      product += load4(sum + 4 * b) * load4(x + 4 * b);
      if (kLocal) store4(v + 4 * b, load4(sum + 4 * b));
    }
    return (product[0] + product[1]) + (product[2] + product[3]);
  }

  // The weights that scores give to the triangle's numbers.
  template <int D> void multiply(Request& request, int64_t d) {
    const T *x = request.x.get(), *twice = twice_.get();
    T* weight = request.weight.get();
#if !defined(__clang__)
    if constexpr (D == kWidth<T>) {
      const Integer *row = row_of_.get(), *column = column_of_.get();
      const Vec<T> whole = load(x);
      for (int64_t k = 0; k < numbers_; k += kWidth<T>) {
        Place<Vec<T>> rows, columns;
        std::memcpy(&rows, row + k, sizeof(rows));
        std::memcpy(&columns, column + k, sizeof(columns));
        const Vec<T> both = __builtin_shuffle(whole, rows) * __builtin_shuffle(whole, columns);
        store(weight + k, both * load(twice + k));
      }
      return;
    }
#endif
#pragma GCC unroll 16
    for (int64_t r = 0; r < d; ++r) {
      const Four<T> own = Four<T>{} + x[r], both = own + own;
      const int64_t diagonal = r / 4;
#pragma GCC unroll 4
      for (int64_t c = 0; c < diagonal; ++c, weight += 4, twice += 4)
        store4(weight, both * load4(x + 4 * c));
      store4(weight, own * load4(x + 4 * diagonal) * load4(twice));
      weight += 4, twice += 4;
    }
  }

  // Ridge regression towards theta_0: the estimate towards 0 plus ridge x^T V^-1 theta_0, which is
  // the triangle's product with the weights (x_r t_c + x_c t_r) / (1 + [r = c]).
  const T* with_common_prior(const Request& request, T ridge) {
    const T *x = request.x.get(), *t = common_.theta(), *twice = twice_.get();
    const T* raw = request.mean.get();
    T* shrunk = shrunk_.get();
    int64_t k = 0;
    for (int64_t r = 0; r < d_; ++r)
      for (int64_t c = 0; c <= r; c += 4, k += 4) {
        const Four<T> both = x[r] * load4(t + c) + t[r] * load4(x + c);
        store4(prior_.get() + k, both * load4(twice + k) / T(2));
      }
    const T* prior[1] = {prior_.get()};
    for (int64_t b = 0; b < padded_; b += kWidth<T>) {
      T* out[1] = {shrunk + b};
      sums<0, 1>(triangle_.get() + b * groups_ * 4, prior, groups_, out);
    }
    const T untouched = dot(x, t, d_pad_);
    for (int64_t i = 0; i < n_; ++i)
      shrunk[i] = raw[i] + (touched_[i] > 0 ? ridge * shrunk[i] : untouched);
    return shrunk;
  }

  void theory_beta(const Lane<T>& lane) {
    const T* number = lane.numbers;
    for (int64_t i = 0; i < n_; ++i) {
      const T growth = T(1) + static_cast<T>(lane.pulls[i]) / number[kRidge];
      const T inside = std::log(growth * number[kActive] / number[kDelta]);
      scores.beta[i] = number[kSigma] * std::sqrt(number[kFeatures] * inside) +
                       std::sqrt(number[kRidge]) * number[kThetaBound];
    }
  }

  // Fours of a triangle.
  static constexpr int64_t groups_of(int64_t d) {
    int64_t groups = 0;
    for (int64_t r = 0; r < d; ++r) groups += r / 4 + 1;
    return groups;
  }

  // Products of a block of adapters with R requests.
  template <int D, int R> void products(Request* requests, int64_t block) {
    const T *weight[R], *x[R];
    T *squared[R], *mean[R];
    for (int r = 0; r < R; ++r) {
      Request& one = requests[r];
      weight[r] = one.weight.get(), x[r] = one.x.get();
      squared[r] = one.squared.get() + block, mean[r] = one.mean.get() + block;
    }
    sums<groups_of(D), R>(triangle_.get() + block * groups_ * 4, weight, groups_, squared);
    sums<(D + 3) / 4, R>(estimate_.get() + block * theta_groups_ * 4, x, theta_groups_, mean);
  }

  // out[r][i] = sum over all fours of adapter i's numbers times `weight[r]`, for a block of
  // adapters; G is the number of fours where it is known.
  template <int64_t G, int R>
  static void sums(const T* array, const T* const* weight, int64_t given, T* const* out) {
    const int64_t groups = G > 0 ? G : given;
    Vec<T> part[R][4] = {};
#pragma GCC unroll 4
    for (int64_t g = 0; g < groups; ++g, array += kStep) {
      Vec<T> w[R];
      for (int r = 0; r < R; ++r) w[r] = repeat4(weight[r] + 4 * g);
      for (int k = 0; k < 4; ++k) {
        const Vec<T> numbers = load(array + k * kWidth<T>);
        for (int r = 0; r < R; ++r) part[r][k] = fused(numbers, w[r], part[r][k]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int k = 0; k < 4; ++k) part[r][k] = sum4(part[r][k]);
      store(out[r], one_of_each<T>(part[r]));
    }
  }

  // The same sum for one adapter, in the same order.
  static T product(const T* array, const T* weight, int64_t groups) {
    Four<T> part = {};
    for (int64_t g = 0; g < groups; ++g, array += kStep)
      part = fused(load4(array), load4(weight + 4 * g), part);
    return (part[0] + part[1]) + (part[2] + part[3]);
  }

  bool pooled_;
  Pooled<T> common_;
  int64_t n_, d_, d_pad_, padded_, theta_groups_, groups_ = 0, numbers_;
  std::vector<int64_t> row_;  // first four of each row
  Array<Integer> row_of_, column_of_;  // of each product x_r x_c
  Array<T> triangle_, estimate_;       // by `place`
  Array<T> sum_, recent_;              // by adapter
  Array<T> v_, scaled_, twice_, once_, prior_, shrunk_;
  Array<T> floor_, touched_;
  Request requests_[kMost];
  int64_t together_ = kSureSums ? kMost : 1;
};

}  // namespace polar
