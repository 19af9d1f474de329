// POLAR-E's controller: virtual caches compete, the real one follows the best. See `experts.py`.
#pragma once

#include "controllers.h"

namespace polar {

template <typename T> class Experts {
 public:
  Experts(const Sizes& sizes, int64_t padded)
      : n_(sizes.adapters), padded_(padded), count_(sizes.numbers - kOwn - 2) {
    for (Array<T>* one : {&q_, &net_, &work_}) one->resize(padded, -kInf<T>);
    cost_.resize(padded, T(0)), shortfall_.resize(count_);
    for (Array<T>* one : {&inside_, &value_, &deficit_}) one->resize(padded * count_);
    route_.resize(static_cast<size_t>(count_));
  }

  // Memory: losses, values, deficits, real deficits; then sets, last uses, clock. `[N, E]` arrays
  // are turned so that an expert's numbers lie together.
  void begin(Lane<T>& lane) {
    const int64_t values = count_ - 1;
    const T* value = lane.memory_float + count_;
    const T* deficit = value + n_ * values;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t e = 0; e < count_; ++e) {
        inside_[e * padded_ + i] = lane.memory_int[i * count_ + e] ? T(1) : T(0);
        if (e == values) continue;
        value_[e * padded_ + i] = value[i * values + e];
        deficit_[e * padded_ + i] = deficit[i * values + e];
      }
      cost_[i] = lane.paging_cost[i];
    }
  }

  void end(Lane<T>& lane) const {
    const int64_t values = count_ - 1;
    T* value = lane.memory_float + count_;
    T* deficit = value + n_ * values;
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t e = 0; e < count_; ++e) {
        lane.memory_int[i * count_ + e] = inside_[e * padded_ + i] > 0;
        if (e == values) continue;
        value[i * values + e] = value_[e * padded_ + i];
        deficit[i * values + e] = deficit_[e * padded_ + i];
      }
  }

  // One request; returns the adapter whose load was bought, -1 for none.
  int64_t admit(Lane<T>& lane, const Scores<T>& scores, int64_t a) {
    const int64_t values = count_ - 1;
    const T *decay = lane.numbers + kOwn, *own = decay + values;
    T* loss = lane.memory_float;
    int32_t *last_use = lane.memory_int + n_ * count_, *clock = last_use + n_;
    for (int64_t i = 0; i < n_; ++i) {
      const T beta = scores.beta[i] < own[2] ? scores.beta[i] : own[2];
      q_[i] = scores.mean[i] + beta * scores.width[i];
      net_[i] = q_[i] - cost_[i];
    }
    const T base = first_max(net_.get(), padded_).value;
    const Best<T> top = first_max(q_.get(), padded_);
    const T share = own[1] * static_cast<T>(*clock);
    const T rho = std::exp2(T(-1) / (own[0] > share ? own[0] : share));
    for (int64_t e = 0; e < count_; ++e) {
      const Best<T> best = best_with(inside_.get() + e * padded_);
      route_[e] = best.index;
      shortfall_[e] = top.value - best.value;
      loss[e] = rho * loss[e] + shortfall_[e];
    }
    for (int64_t e = 0; e < values; ++e)
      loss[e] += follow_values(e, decay[e], base, top.index, lane.paging_cost[top.index]);
    follow_lru(last_use, *clock);
    *clock += 1;
    int64_t leader = 0;
    for (int64_t e = 1; e < count_; ++e)
      if (loss[e] < loss[leader]) leader = e;
    // Only differences count; sums over a long memory would not resolve them in float32.
    const T least = loss[leader];
    for (int64_t e = 0; e < count_; ++e) loss[e] -= least;
    return follow_best(lane, inside_.get() + leader * padded_, a);
  }

 private:
  // Value and first place of the best adapter where `inside` is resident.
  Best<T> best_with(const T* inside) {
    for (int64_t i = 0; i < padded_; i += kWidth<T>)
      store(work_.get() + i, load(inside + i) > T(0) ? load(q_.get() + i) : load(net_.get() + i));
    return first_max(work_.get(), padded_);
  }

  // The member with the least value: its place, and -value. Without members place 0 and -inf.
  Best<T> least_member(const T* inside, const T* value) {
    const Vec<T> nothing = Vec<T>{} - kInf<T>;
    for (int64_t i = 0; i < padded_; i += kWidth<T>)
      store(work_.get() + i, load(inside + i) > T(0) ? -load(value + i) : nothing);
    return first_max(work_.get(), padded_);
  }

  // What each adapter's residency adds to the value of this request (`marginal_savings`).
  void add_savings(const T* inside, T* value, T base, int64_t least) {
    const Vec<T> nothing = Vec<T>{} - kInf<T>;
    for (int64_t i = 0; i < padded_; i += kWidth<T>)
      store(work_.get() + i, load(inside + i) > T(0) ? load(q_.get() + i) : nothing);
    const Best<T> leader = first_max(work_.get(), padded_);
    work_[leader.index] = -kInf<T>;
    const T second = first_max(work_.get(), padded_).value;
    const T kept = leader.index == least ? second : leader.value;
    const T floor = kept > base ? kept : base;
    for (int64_t i = 0; i < padded_; i += kWidth<T>) {
      const Vec<T> beyond = load(q_.get() + i) - floor;
      const Vec<T> gain = (beyond > T(0)) & (load(inside + i) <= T(0)) ? beyond : Vec<T>{};
      store(value + i, load(value + i) + gain);
    }
    if (!(inside[leader.index] > 0)) return;
    const T lead = leader.value - (second > base ? second : base);
    value[leader.index] += lead > 0 ? lead : T(0);
  }

  // Moves the virtual cache of value expert `e`; returns what a bought load cost.
  T follow_values(int64_t e, T decay, T base, int64_t top, T top_cost) {
    T *inside = inside_.get() + e * padded_, *value = value_.get() + e * padded_;
    for (int64_t i = 0; i < padded_; i += kWidth<T>) store(value + i, load(value + i) * decay);
    add_savings(inside, value, base, least_member(inside, value).index);
    const int64_t route = route_[e];
    const bool missed = !(inside[route] > 0), wanted = !missed && !(inside[top] > 0);
    T& deficit = deficit_[e * padded_ + top];
    if (wanted) deficit += shortfall_[e];
    // As the values are now; infinite where no adapter is resident: nothing can be swapped.
    if (!missed && !(wanted && deficit >= top_cost)) return 0;
    const Best<T> out = least_member(inside, value);
    const int64_t incoming = missed ? route : top;
    if (!(value[incoming] >= -out.value)) return 0;
    inside[out.index] = 0;
    inside[incoming] = 1;
    if (missed) return 0;
    deficit = 0;
    return top_cost;
  }

  void follow_lru(int32_t* last_use, int32_t clock) {
    T* inside = inside_.get() + (count_ - 1) * padded_;
    const int64_t route = route_[count_ - 1];
    if (!(inside[route] > 0)) {
      int64_t oldest = -1;
      for (int64_t i = 0; i < n_; ++i)
        if (inside[i] > 0 && (oldest < 0 || last_use[i] < last_use[oldest])) oldest = i;
      if (oldest >= 0) inside[oldest] = 0, inside[route] = 1;
    }
    last_use[route] = clock;
  }

  // The resident outside `followed` with the least value of the shortest memory; -1 for none.
  int64_t outgoing(const bool* resident, const T* followed) const {
    int64_t least = -1;
    for (int64_t i = 0; i < n_; ++i)
      if (resident[i] && !(followed[i] > 0) && (least < 0 || value_[i] < value_[least])) least = i;
    return least;
  }

  // Moves the real cache towards the best expert's set (`_follow_best`).
  int64_t follow_best(Lane<T>& lane, const T* followed, int64_t a) {
    bool* resident = lane.resident;
    if (!resident[a] && followed[a] > 0) {
      const int64_t out = outgoing(resident, followed);
      if (out >= 0) swap(resident, a, out);
    }
    const Best<T> best = best_with(followed);
    const int64_t route = best.index;
    if (resident[route] || !(followed[route] > 0)) return -1;
    T now = -kInf<T>;
    for (int64_t i = 0; i < n_; ++i) {
      const T value = resident[i] ? q_[i] : net_[i];
      now = value > now ? value : now;
    }
    const T gain = best.value - now;
    if (!(gain > 0)) return -1;
    T& deficit = lane.memory_float[count_ + 2 * n_ * (count_ - 1) + route];
    deficit += gain;
    if (!(deficit >= lane.switch_cost[route])) return -1;
    deficit = 0;
    const int64_t out = outgoing(resident, followed);
    if (out < 0) return -1;
    swap(resident, route, out);
    return route;
  }

  int64_t n_, padded_, count_;  // count_: experts, the last one LRU
  Array<T> q_, net_, work_, cost_, inside_, value_, deficit_, shortfall_;
  std::vector<int32_t> route_;
};

}  // namespace polar
