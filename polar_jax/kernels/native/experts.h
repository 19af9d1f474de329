// POLAR-E's controller: virtual caches compete, the real one follows the best. See `experts.py`.
//
// Experts lie side by side in fours, adapter by adapter: what is largest, and where, is then found
// for all of them at once, and no vector has to be searched.
#pragma once

#include "controllers.h"

namespace polar {

template <typename T> class Experts {
 public:
  Experts(const Sizes& sizes, int64_t padded)
      : n_(sizes.adapters), padded_(padded), count_(sizes.numbers - kOwn - 2),
        fours_((count_ + 3) / 4) {
    for (Array<T>* one : {&q_, &net_, &work_}) one->resize(padded, -kInf<T>);
    cost_.resize(padded, T(0));
    for (Array<T>* one : {&inside_, &value_, &deficit_}) one->resize(fours_ * n_ * 4);
    for (Array<T>* one : {&decay_, &best_, &shortfall_}) one->resize(fours_ * 4);
    for (Array<Integer>* one : {&route_, &least_}) one->resize(fours_ * 4);
  }

  // Memory: losses, values, deficits, real deficits; then sets, last uses, clock.
  void begin(Lane<T>& lane) {
    const int64_t values = count_ - 1;
    const T* value = lane.memory_float + count_;
    const T* deficit = value + n_ * values;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t e = 0; e < count_; ++e) {
        inside_[at(e, i)] = lane.memory_int[i * count_ + e] ? T(1) : T(0);
        if (e == values) continue;
        value_[at(e, i)] = value[i * values + e];
        deficit_[at(e, i)] = deficit[i * values + e];
      }
      cost_[i] = lane.paging_cost[i];
    }
    // LRU has no values: its own are forgotten at once.
    for (int64_t e = 0; e < values; ++e) decay_[e] = lane.numbers[kOwn + e];
  }

  void end(Lane<T>& lane) const {
    const int64_t values = count_ - 1;
    T* value = lane.memory_float + count_;
    T* deficit = value + n_ * values;
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t e = 0; e < count_; ++e) {
        lane.memory_int[i * count_ + e] = inside_[at(e, i)] > 0;
        if (e == values) continue;
        value[i * values + e] = value_[at(e, i)];
        deficit[i * values + e] = deficit_[at(e, i)];
      }
  }

  // One request; returns the adapter whose load was bought, -1 for none.
  int64_t admit(Lane<T>& lane, const Scores<T>& scores, int64_t a) {
    const int64_t values = count_ - 1;
    const T* own = lane.numbers + kOwn + values;
    T* loss = lane.memory_float;
    int32_t *last_use = lane.memory_int + n_ * count_, *clock = last_use + n_;
    const Vec<T> most = Vec<T>{} + own[2];
    for (int64_t i = 0; i < padded_; i += kWidth<T>) {
      const Vec<T> beta = load(scores.beta.get() + i);
      const Vec<T> q = load(scores.mean.get() + i) +
                       (beta < most ? beta : most) * load(scores.width.get() + i);
      store(q_.get() + i, q);
      store(net_.get() + i, q - load(cost_.get() + i));
    }
    for (int64_t i = n_; i < padded_; ++i) q_[i] = net_[i] = -kInf<T>;
    const T base = first_max(net_.get(), padded_).value;
    const Best<T> top = first_max(q_.get(), padded_);
    for (int64_t f = 0; f < fours_; ++f) look(f, base, top.value);
    const T share = own[1] * static_cast<T>(*clock);
    const T rho = std::exp2(T(-1) / (own[0] > share ? own[0] : share));
    for (int64_t e = 0; e < count_; ++e) loss[e] = rho * loss[e] + shortfall_[e];
    for (int64_t e = 0; e < values; ++e)
      loss[e] += follow_values(e, top.index, lane.paging_cost[top.index]);
    follow_lru(last_use, *clock);
    *clock += 1;
    int64_t leader = 0;
    for (int64_t e = 1; e < count_; ++e)
      if (loss[e] < loss[leader]) leader = e;
    // Only differences count; sums over a long memory would not resolve them in float32.
    const T least = loss[leader];
    for (int64_t e = 0; e < count_; ++e) loss[e] -= least;
    return follow_best(lane, leader, a);
  }

 private:
  using Integer = Whole<T>;
  using Numbers = Four<T>;
  using Places = Place<Four<T>>;

  // Of four experts: the largest of some numbers, and the first adapter that has it.
  struct Found {
    Numbers value = Numbers{} - kInf<T>;
    Places adapter = {};

    void take(Numbers now, Places i) {
      const Places larger = now > value;
      value = larger ? now : value;
      adapter = larger ? i : adapter;
    }
  };

  // Where expert `e` keeps a number of adapter `i`.
  int64_t at(int64_t e, int64_t i) const { return (e / 4 * n_ + i) * 4 + e % 4; }

  // Four experts on a request: which adapter each would take, and what residency has saved it.
  void look(int64_t f, T base, T top) {
    T *inside = inside_.get() + f * n_ * 4, *value = value_.get() + f * n_ * 4;
    const Numbers nothing = Numbers{} - kInf<T>, decay = load4(decay_.get() + f * 4);
    Found best, least, leader;
    Numbers second = nothing;
    for (int64_t i = 0; i < n_; ++i) {
      const Places here = Places{} + static_cast<Integer>(i);
      const Places member = load4(inside + i * 4) > T(0);
      const Numbers q = Numbers{} + q_[i], net = Numbers{} + net_[i];
      const Numbers worth = load4(value + i * 4) * decay;
      store4(value + i * 4, worth);
      best.take(member ? q : net, here);
      least.take(member ? -worth : nothing, here);
      const Numbers held = member ? q : nothing;
      const Numbers smaller = held > leader.value ? leader.value : held;
      second = smaller > second ? smaller : second;
      leader.take(held, here);
    }
    store4(route_.get() + f * 4, best.adapter);
    store4(best_.get() + f * 4, best.value);
    store4(shortfall_.get() + f * 4, top - best.value);
    // What each adapter's residency adds to the value of this request (`marginal_savings`).
    const Numbers floor = Numbers{} + base;
    const Numbers kept = leader.adapter == least.adapter ? second : leader.value;
    const Numbers beaten = kept > floor ? kept : floor;
    const Numbers lead = leader.value - (second > floor ? second : floor);
    Found out;
    for (int64_t i = 0; i < n_; ++i) {
      const Places here = Places{} + static_cast<Integer>(i);
      const Places member = load4(inside + i * 4) > T(0);
      const Numbers beyond = q_[i] - beaten;
      const Numbers own = leader.adapter == here ? lead : Numbers{};
      const Numbers gain = member ? own : beyond;
      const Numbers worth = load4(value + i * 4) + (gain > T(0) ? gain : Numbers{});
      store4(value + i * 4, worth);
      out.take(member ? -worth : nothing, here);
    }
    store4(least_.get() + f * 4, out.adapter);
  }

  // Moves the virtual cache of value expert `e`; returns what a bought load cost.
  T follow_values(int64_t e, int64_t top, T top_cost) {
    const int64_t route = route_[e], out = least_[e];
    const bool missed = !(inside_[at(e, route)] > 0);
    const bool wanted = !missed && !(inside_[at(e, top)] > 0);
    T& deficit = deficit_[at(e, top)];
    if (wanted) deficit += shortfall_[e];
    if (!missed && !(wanted && deficit >= top_cost)) return 0;
    // Where no adapter is resident nothing can be swapped.
    if (!(inside_[at(e, out)] > 0)) return 0;
    const int64_t incoming = missed ? route : top;
    if (!(value_[at(e, incoming)] >= value_[at(e, out)])) return 0;
    swap_in(e, incoming, out);
    if (missed) return 0;
    deficit = 0;
    return top_cost;
  }

  void follow_lru(int32_t* last_use, int32_t clock) {
    const int64_t lru = count_ - 1, route = route_[lru];
    if (!(inside_[at(lru, route)] > 0)) {
      int64_t oldest = -1;
      for (int64_t i = 0; i < n_; ++i)
        if (inside_[at(lru, i)] > 0 && (oldest < 0 || last_use[i] < last_use[oldest])) oldest = i;
      if (oldest >= 0) swap_in(lru, route, oldest);
    }
    last_use[route] = clock;
  }

  // Changes an expert's set, and what it would take now.
  void swap_in(int64_t e, int64_t in, int64_t out) {
    inside_[at(e, out)] = 0;
    inside_[at(e, in)] = 1;
    for (int64_t i = 0; i < n_; ++i) work_[i] = inside_[at(e, i)] > 0 ? q_[i] : net_[i];
    const Best<T> best = first_max(work_.get(), padded_);
    route_[e] = static_cast<Integer>(best.index), best_[e] = best.value;
  }

  // The resident outside expert `e`'s set with the least value of the shortest memory; -1 for none.
  int64_t outgoing(const bool* resident, int64_t e) const {
    int64_t least = -1;
    for (int64_t i = 0; i < n_; ++i)
      if (resident[i] && !(inside_[at(e, i)] > 0) &&
          (least < 0 || value_[at(0, i)] < value_[at(0, least)]))
        least = i;
    return least;
  }

  // Moves the real cache towards the set of expert `e` (`_follow_best`).
  int64_t follow_best(Lane<T>& lane, int64_t e, int64_t a) {
    bool* resident = lane.resident;
    if (!resident[a] && inside_[at(e, a)] > 0) {
      const int64_t out = outgoing(resident, e);
      if (out >= 0) swap(resident, a, out);
    }
    const int64_t route = route_[e];
    if (resident[route] || !(inside_[at(e, route)] > 0)) return -1;
    T now = -kInf<T>;
    for (int64_t i = 0; i < n_; ++i) {
      const T value = resident[i] ? q_[i] : net_[i];
      now = value > now ? value : now;
    }
    const T gain = best_[e] - now;
    if (!(gain > 0)) return -1;
    T& deficit = lane.memory_float[count_ + 2 * n_ * (count_ - 1) + route];
    deficit += gain;
    if (!(deficit >= lane.switch_cost[route])) return -1;
    deficit = 0;
    const int64_t out = outgoing(resident, e);
    if (out < 0) return -1;
    swap(resident, route, out);
    return route;
  }

  int64_t n_, padded_, count_, fours_;  // count_: experts, the last one LRU
  Array<T> q_, net_, work_, cost_;      // by adapter
  Array<T> inside_, value_, deficit_;   // by `at`
  Array<T> decay_, best_, shortfall_;   // by expert
  Array<Integer> route_, least_;
};

}  // namespace polar
