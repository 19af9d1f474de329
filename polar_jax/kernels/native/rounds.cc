// `simulate.run_rounds` over many lanes as one XLA custom call; `native_rounds.py` is its other half.
//
// One lane after the other, all its rounds at once: its statistics stay in the fastest cache, and
// what a lane gives depends on nothing beside it.
#include <algorithm>

#include "experts.h"
#include "ffi.h"

namespace polar {

template <typename T> class Kernel {
 public:
  Kernel(const Sizes& sizes, const Attributes& attributes)
      : sizes_(sizes), with_(attributes), n_(sizes.adapters),
        statistics_(sizes, attributes.pooled) {
    if (attributes.controller == kExperts)
      experts_.emplace_back(sizes, statistics_.padded());
    penalty_.resize(statistics_.padded(), T(0));
    starved_.resize(statistics_.padded(), -kInf<T>);
    pulls_.resize(statistics_.padded()), price_.resize(statistics_.padded());
  }

  void serve(Lane<T>& lane) {
    statistics_.begin(lane);
    for (Experts<T>& one : experts_) one.begin(lane);
    charge(lane);
    for (int64_t i = 0; i < n_; ++i) pulls_[i] = static_cast<T>(lane.pulls[i]);
    pending_ = true;
    switch (sizes_.features) {
      case 16: rounds<16>(lane); break;
      case 32: rounds<32>(lane); break;
      case 64: rounds<64>(lane); break;
      default: rounds<0>(lane);
    }
    statistics_.end(lane);
    for (Experts<T>& one : experts_) one.end(lane);
  }

 private:
  template <int D> void rounds(Lane<T>& lane) {
    const int64_t stop = lane.span[1] < sizes_.rounds ? lane.span[1] : sizes_.rounds;
    for (int64_t t = lane.span[0]; t < stop;) {
      const int64_t count = std::min(statistics_.together(), stop - t);
      statistics_.template look<D>(lane.context + t * sizes_.features, count);
      for (int64_t k = 0; k < count; ++k, ++t) {
        const int64_t a = round<D>(lane, t, k);
        // Only what it has learnt is another than it was when it was looked at.
        for (int64_t later = k + 1; later < count; ++later)
          statistics_.template look_again<D>(a, later);
      }
    }
  }

  // Serves request `k` of those that were looked at; returns the adapter.
  template <int D> int64_t round(Lane<T>& lane, int64_t t, int64_t k) {
    statistics_.template score<D>(lane, k, with_.theory);
    bool forced = false;
    const int64_t a = select(lane, &forced);
    T reward = lane.utility[t * n_ + a] + lane.noise[t];
    if (with_.binary) reward = std::floor(reward);
    book(lane, t, a, forced);
    statistics_.template observe<D>(lane, k, a, reward);
    pulls_[a] = static_cast<T>(lane.pulls[a]);
    return a;
  }

  // What the index of each adapter is charged with the set as it is, and what exploring it counts.
  void charge(const Lane<T>& lane) {
    for (int64_t i = 0; i < n_; ++i) {
      const T cost = lane.paging_cost[i];
      penalty_[i] = lane.resident[i] ? T(0) : lane.numbers[kCostWeight] * cost;
      price_[i] = lane.resident[i] || !(cost > 1) ? T(1) : cost;
    }
  }

  int64_t best() {
    return first_max(statistics_.scores.net.get(), statistics_.padded()).index;
  }

  int64_t select(const Lane<T>& lane, bool* forced) {
    Scores<T>& scores = statistics_.scores;
    for (int64_t i = 0; i < statistics_.padded(); i += kWidth<T>)
      store(scores.net.get() + i, load(scores.index.get() + i) - load(penalty_.get() + i));
    if (with_.selection == kQuota) {
      int64_t least = -1;
      for (int64_t i = 0; i < n_; ++i)
        if (lane.active[i] && (least < 0 || lane.pulls[i] < lane.pulls[least])) least = i;
      *forced = least >= 0 && lane.pulls[least] < lane.span[2];
      if (*forced) return least;
    } else if (with_.selection == kRelevant) {
      const T quota = static_cast<T>(lane.span[2]);
      const Vec<T> nothing = Vec<T>{} - kInf<T>;
      for (int64_t i = 0; i < statistics_.padded(); i += kWidth<T>) {
        const Vec<T> spent = load(pulls_.get() + i) * load(price_.get() + i);
        store(starved_.get() + i, spent < quota ? load(scores.index.get() + i) : nothing);
      }
      const Best<T> starved = first_max(starved_.get(), statistics_.padded());
      const T highest = first_max(scores.index.get(), statistics_.padded()).value;
      *forced = starved.value >= highest - lane.numbers[kMargin];
      if (*forced) return starved.index;
    }
    return best();
  }

  // Admission, and what the round is charged for loads that no request has paid for.
  void book(Lane<T>& lane, int64_t t, int64_t a, bool forced) {
    lane.adapter[t] = static_cast<int32_t>(a);
    lane.forced[t] = forced;
    bool* sets = lane.sets + t * n_;
    copy(sets, lane.resident);
    const int64_t bought = admit(lane, a);
    const bool changed = with_.controller != kFixed && differ(sets, lane.resident);
    int32_t loads = 0;
    T cost = 0, milliseconds = 0;
    if (changed) charge(lane);
    if (changed || pending_) {
      for (int64_t i = 0; i < n_; ++i) {
        loads += (lane.resident[i] && !sets[i]) + lane.pending[i];
        if (lane.pending[i] || i == bought)
          cost += lane.switch_cost[i], milliseconds += lane.paging_ms[i];
        lane.pending[i] = false;
      }
      pending_ = false;
    }
    lane.loads[t] = loads;
    lane.switched[t] = cost;
    lane.switched_ms[t] = milliseconds;
  }

  // Without a call of the library for as few bytes as there mostly are.
  void copy(bool* to, const bool* from) const {
    uint64_t head, tail;
    if (n_ < 8 || n_ > 16) {
      std::memcpy(to, from, static_cast<size_t>(n_));
      return;
    }
    std::memcpy(&head, from, 8), std::memcpy(&tail, from + n_ - 8, 8);
    std::memcpy(to, &head, 8), std::memcpy(to + n_ - 8, &tail, 8);
  }

  bool differ(const bool* a, const bool* b) const {
    return std::memcmp(a, b, static_cast<size_t>(n_)) != 0;
  }

  int64_t admit(Lane<T>& lane, int64_t a) {
    const Scores<T>& scores = statistics_.scores;
    switch (with_.controller) {
      case kLru: admit_counts(lane, n_, a, false); break;
      case kLfu: admit_counts(lane, n_, a, true); break;
      case kGdsf: admit_gdsf(lane, n_, a); break;
      case kValue: admit_value(lane, scores, n_, a); break;
      case kExperts: return experts_[0].admit(lane, scores, a);
      default: break;
    }
    return -1;
  }

  Sizes sizes_;
  Attributes with_;
  int64_t n_;
  Statistics<T> statistics_;
  std::vector<Experts<T>> experts_;
  Array<T> penalty_, starved_, pulls_, price_;
  bool pending_ = true;  // whether loads of a replan may be waiting to be booked
};

template <typename T, ffi::DataType F>
ffi::Error Serve(In<F> context, In<F> utility, In<F> noise, In<S32> span, In<F> numbers,
                 In<F> costs, In<PRED> active, In<F> inverse_in, In<F> recent_in, In<F> sum_in,
                 In<F> theta_in, In<S32> pulls_in, In<PRED> resident_in, In<PRED> pending_in,
                 In<F> memory_in, In<S32> counts_in, In<S32> adapter_in, In<PRED> forced_in,
                 In<PRED> sets_in, In<F> switched_in, In<F> switched_ms_in, In<S32> loads_in,
                 In<F> pooled_inverse_in, In<F> pooled_theta_in,
                 Out<F> inverse, Out<F> recent, Out<F> sum, Out<F> theta, Out<S32> pulls,
                 Out<PRED> resident, Out<PRED> pending, Out<F> memory, Out<S32> counts,
                 Out<S32> adapter, Out<PRED> forced, Out<PRED> sets, Out<F> switched,
                 Out<F> switched_ms, Out<S32> loads, Out<F> pooled_inverse,
                 Out<F> pooled_theta, int64_t selection, int64_t controller,
                 bool theory, bool binary, bool pooled) {
  const Sizes s{axis(context, 1), axis(utility, 0), axis(context, 0),
                axis(numbers, 0), axis(memory_in, 0), axis(counts_in, 0)};
  const int64_t lanes = static_cast<int64_t>(context.element_count()) / (s.rounds * s.features);
  const int64_t n = s.adapters, d = s.features, rounds = s.rounds;
  Lane<T> first{};
  first.context = context.typed_data(), first.utility = utility.typed_data();
  first.noise = noise.typed_data(), first.span = span.typed_data();
  first.numbers = numbers.typed_data(), first.active = active.typed_data();
  first.precision_inv = settle(inverse_in, inverse);
  first.precision_recent = settle(recent_in, recent);
  first.reward_recent = settle(sum_in, sum), first.theta = settle(theta_in, theta);
  first.pulls = settle(pulls_in, pulls), first.resident = settle(resident_in, resident);
  first.pending = settle(pending_in, pending), first.memory_float = settle(memory_in, memory);
  first.memory_int = settle(counts_in, counts), first.adapter = settle(adapter_in, adapter);
  first.forced = settle(forced_in, forced), first.sets = settle(sets_in, sets);
  first.switched = settle(switched_in, switched);
  first.switched_ms = settle(switched_ms_in, switched_ms), first.loads = settle(loads_in, loads);
  first.pooled_inverse = settle(pooled_inverse_in, pooled_inverse);
  first.pooled_theta = settle(pooled_theta_in, pooled_theta);
  std::optional<Kernel<T>> held;
  try {
    held.emplace(s, Attributes{selection, controller, theory, binary, pooled});
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a lane's statistics");
  }
  Kernel<T>& kernel = *held;
  const auto at = [&](int64_t l) {
    Lane<T> lane = first;
    lane.context += l * rounds * d, lane.utility += l * rounds * n, lane.noise += l * rounds;
    lane.span += l * 3, lane.numbers += l * s.numbers, lane.active += l * n;
    const T* cost = costs.typed_data() + l * 4 * n;
    lane.paging_cost = cost, lane.switch_cost = cost + n;
    lane.paging_ms = cost + 2 * n, lane.size = cost + 3 * n;
    lane.precision_inv += l * n * d * d, lane.precision_recent += l * n * s.packed();
    lane.reward_recent += l * n * d, lane.theta += l * n * d, lane.pulls += l * n;
    lane.resident += l * n, lane.pending += l * n;
    lane.memory_float += l * s.memory_float, lane.memory_int += l * s.memory_int;
    lane.adapter += l * rounds, lane.forced += l * rounds, lane.sets += l * rounds * n;
    lane.switched += l * rounds, lane.switched_ms += l * rounds, lane.loads += l * rounds;
    // Of size 1 where there is no common prior.
    if (pooled) lane.pooled_inverse += l * d * d, lane.pooled_theta += l * d;
    return lane;
  };
  for (int64_t l = 0; l < lanes; ++l) {
    Lane<T> lane = at(l);
    // What only fills up a tile has no rounds.
    if (lane.span[0] < lane.span[1]) kernel.serve(lane);
  }
  return ffi::Error::Success();
}

template <ffi::DataType F> auto Binding() {
  using A = In<F>;
  using I = In<S32>;
  using B = In<PRED>;
  using RA = ffi::Buffer<F>;
  using RI = ffi::Buffer<S32>;
  using RB = ffi::Buffer<PRED>;
  return ffi::Ffi::Bind()
      .template Arg<A>().template Arg<A>().template Arg<A>().template Arg<I>().template Arg<A>()
      .template Arg<A>().template Arg<B>().template Arg<A>().template Arg<A>().template Arg<A>()
      .template Arg<A>().template Arg<I>().template Arg<B>().template Arg<B>().template Arg<A>()
      .template Arg<I>().template Arg<I>().template Arg<B>().template Arg<B>().template Arg<A>()
      .template Arg<A>().template Arg<I>().template Arg<A>().template Arg<A>()
      .template Ret<RA>().template Ret<RA>().template Ret<RA>().template Ret<RA>()
      .template Ret<RI>().template Ret<RB>().template Ret<RB>().template Ret<RA>()
      .template Ret<RI>().template Ret<RI>().template Ret<RB>().template Ret<RB>()
      .template Ret<RA>().template Ret<RA>().template Ret<RI>()
      .template Ret<RA>().template Ret<RA>()
      .template Attr<int64_t>("selection").template Attr<int64_t>("controller")
      .template Attr<bool>("theory").template Attr<bool>("binary").template Attr<bool>("pooled");
}

}  // namespace polar

XLA_FFI_DEFINE_HANDLER_SYMBOL(PolarRoundsF32, (polar::Serve<float, ffi::DataType::F32>),
                              polar::Binding<ffi::DataType::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(PolarRoundsF64, (polar::Serve<double, ffi::DataType::F64>),
                              polar::Binding<ffi::DataType::F64>());
