// `metrics.chunk_sums` over many lanes as one XLA custom call; `native_metrics.py` is its other half.
#include <algorithm>
#include <new>

#include "ffi.h"
#include "vectors.h"

namespace polar {

// Columns of `metrics.PARTS`.
enum Part {
  kRegret, kRouting, kForced, kCaching, kSwitching, kLossToFull, kNet, kPageIns, kPagingMs,
  kSwitchingMs, kLoads, kWaitingMs, kParts
};

struct Sums {
  int64_t adapters, rounds, intervals;
  bool predicted;  // perfect routing knows predictions of the utilities, not themselves
  bool drawn;      // each round has a latency of its own
};

constexpr int64_t kBlock = 256;  // `draws.BLOCK`: what is summed on its own

template <typename T> struct Figures {
  const T *utility, *benchmark, *latency, *switched, *switched_ms, *costs;
  const int32_t *adapter, *loads, *interval;
  const bool *forced, *sets, *oracle;
  T* sums;
};

// What a set costs on a miss, and what perfect routing gets with it.
template <typename T> class Set {
 public:
  explicit Set(int64_t padded) : padded_(padded) { penalty_.resize(padded, T(0)); }

  void hold(const bool* members, const T* cost, int64_t count) {
    // A product, as costs are finite: the compiler makes a branch of a choice.
    for (int64_t i = 0; i < count; ++i) penalty_[i] = cost[i] * static_cast<T>(1 - members[i]);
  }
  // The largest utility less its cost; what is no number is larger than all that are.
  T value(const T* utility) const {
    Vec<T> best = load(utility) - load(penalty_.get());
    Place<Vec<T>> wrong = best != best;
    for (int64_t i = kWidth<T>; i < padded_; i += kWidth<T>) {
      const Vec<T> now = load(utility + i) - load(penalty_.get() + i);
      best = now > best ? now : best;
      wrong |= now != now;
    }
    return any(wrong) ? std::numeric_limits<T>::quiet_NaN() : largest<T>(best);
  }
  // The utility, less its cost, of what the predictions make the best.
  T value(const T* utility, const T* predicted, T* room) const {
    for (int64_t i = 0; i < padded_; i += kWidth<T>)
      store(room + i, load(predicted + i) - load(penalty_.get() + i));
    const int64_t best = first_max(room, padded_).index;
    return utility[best] - penalty_[best];
  }

 private:
  int64_t padded_;
  Array<T> penalty_;
};

template <typename T> class Summing {
 public:
  explicit Summing(const Sums& sizes)
      : s_(sizes), padded_(round_up(sizes.adapters, kWidth<T>)), oracle_(padded_), own_(padded_),
        all_(padded_) {
    utility_.resize(padded_, -kInf<T>);
    benchmark_.resize(padded_, -kInf<T>);
    room_.resize(padded_, T(0));
    totals_.resize(s_.intervals * kParts, 0.0);
  }

  void measure(const Figures<T>& lane) {
    const int64_t n = s_.adapters;
    oracle_.hold(lane.oracle, lane.costs, n);
    const bool* held = nullptr;
    for (int64_t block = 0; block < s_.rounds / kBlock; ++block) {
      T* out = lane.sums + block * s_.intervals * kParts;
      const int32_t* interval = lane.interval + block * kBlock;
      if (std::all_of(interval, interval + kBlock, [](int32_t i) { return i < 0; })) {
        std::fill_n(out, s_.intervals * kParts, T(0));
        continue;
      }
      for (int64_t i = 0; i < s_.intervals * kParts; ++i) totals_[i] = 0.0;
      for (int64_t t = block * kBlock; t < (block + 1) * kBlock; ++t) {
        const bool* set = lane.sets + t * n;
        if (held == nullptr || std::memcmp(set, held, static_cast<size_t>(n)) != 0)
          own_.hold(set, lane.costs, n);
        held = set;
        if (lane.interval[t] >= 0 && lane.interval[t] < s_.intervals) round(lane, t, set);
      }
      for (int64_t i = 0; i < s_.intervals * kParts; ++i) out[i] = static_cast<T>(totals_[i]);
    }
  }

 private:
  void round(const Figures<T>& lane, int64_t t, const bool* set) {
    const int64_t n = s_.adapters, a = lane.adapter[t];
    std::memcpy(utility_.get(), lane.utility + t * n, sizeof(T) * static_cast<size_t>(n));
    if (s_.predicted)
      std::memcpy(benchmark_.get(), lane.benchmark + t * n, sizeof(T) * static_cast<size_t>(n));
    const T gained = set[a] ? utility_[a] : utility_[a] - lane.costs[a];
    const T with_oracle = value(oracle_), with_set = value(own_), with_all = value(all_);
    const T routing = with_set - gained, net = gained - lane.switched[t];
    const T latency = s_.drawn ? lane.latency[t] : lane.costs[n + a];
    T parts[kParts];
    parts[kRegret] = with_oracle - net, parts[kRouting] = routing;
    parts[kForced] = lane.forced[t] ? routing : T(0), parts[kCaching] = with_oracle - with_set;
    parts[kSwitching] = lane.switched[t], parts[kLossToFull] = with_all - net;
    parts[kNet] = net, parts[kPageIns] = set[a] ? T(0) : T(1);
    parts[kPagingMs] = set[a] ? T(0) : latency, parts[kSwitchingMs] = lane.switched_ms[t];
    parts[kLoads] = static_cast<T>(lane.loads[t]), parts[kWaitingMs] = T(0);
    double* total = totals_.get() + lane.interval[t] * kParts;
    for (int i = 0; i < kParts; ++i) total[i] += static_cast<double>(parts[i]);
  }

  T value(const Set<T>& with) {
    return s_.predicted ? with.value(utility_.get(), benchmark_.get(), room_.get())
                        : with.value(utility_.get());
  }

  Sums s_;
  int64_t padded_;
  Set<T> oracle_, own_, all_;
  Array<T> utility_, benchmark_, room_;
  Array<double> totals_;
};

template <typename T, ffi::DataType F>
ffi::Error Measure(In<F> utility, In<F> benchmark, In<F> latency, In<S32> adapter, In<PRED> forced,
                   In<PRED> sets, In<F> switched, In<F> switched_ms, In<S32> loads, In<F> costs,
                   In<PRED> oracle, In<S32> interval, Out<F> sums, bool predicted, bool drawn) {
  const int64_t n = axis(utility, 0), rounds = axis(utility, 1), intervals = axis(*sums, 1);
  const int64_t lanes = static_cast<int64_t>(utility.element_count()) / (rounds * n);
  const int64_t out = rounds / kBlock * intervals * kParts;
  const auto at = [&](int64_t l) {
    return Figures<T>{utility.typed_data() + l * rounds * n,
                      benchmark.typed_data() + (predicted ? l * rounds * n : 0),
                      latency.typed_data() + (drawn ? l * rounds : 0),
                      switched.typed_data() + l * rounds,
                      switched_ms.typed_data() + l * rounds,
                      costs.typed_data() + l * 2 * n,
                      adapter.typed_data() + l * rounds,
                      loads.typed_data() + l * rounds,
                      interval.typed_data() + l * rounds,
                      forced.typed_data() + l * rounds,
                      sets.typed_data() + l * rounds * n,
                      oracle.typed_data() + l * n,
                      sums->typed_data() + l * out};
  };
  try {
    Summing<T> summing(Sums{n, rounds, intervals, predicted, drawn});
    for (int64_t l = 0; l < lanes; ++l) summing.measure(at(l));
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a lane's sums");
  }
  return ffi::Error::Success();
}

template <ffi::DataType F> auto SumsBinding() {
  using A = In<F>;
  using I = In<S32>;
  using B = In<PRED>;
  return ffi::Ffi::Bind()
      .template Arg<A>().template Arg<A>().template Arg<A>().template Arg<I>().template Arg<B>()
      .template Arg<B>().template Arg<A>().template Arg<A>().template Arg<I>().template Arg<A>()
      .template Arg<B>().template Arg<I>().template Ret<ffi::Buffer<F>>()
      .template Attr<bool>("predicted").template Attr<bool>("drawn");
}

}  // namespace polar

XLA_FFI_DEFINE_HANDLER_SYMBOL(PolarSumsF32, (polar::Measure<float, ffi::DataType::F32>),
                              polar::SumsBinding<ffi::DataType::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(PolarSumsF64, (polar::Measure<double, ffi::DataType::F64>),
                              polar::SumsBinding<ffi::DataType::F64>());
