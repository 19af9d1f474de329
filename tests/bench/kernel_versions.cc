// Lanes of made-up requests for the native kernel without JAX and without the engine: what
// `kernel_versions.py` times. Compiled once for every version of the kernel's sources, and with
// POLAR_HAND_WRITTEN for the loop that they are compared with.
#include <memory>
#include <random>

#if defined(POLAR_HAND_WRITTEN)
#include "hand_written.cc"
#endif
#include "rounds.cc"

namespace {

using Number = float;
constexpr int64_t kValues = 3;  // value experts of POLAR-E, beside LRU

class Lanes {
 public:
  Lanes(int64_t adapters, int64_t features, int64_t rounds, int64_t lanes, bool experts)
      : n_(adapters), d_(features), rounds_(rounds), lanes_(lanes),
        floats_(kValues + 1 + 2 * n_ * kValues + n_), counts_(n_ * (kValues + 1) + n_ + 1),
        sizes_{rounds, n_, d_, polar::kOwn + kValues + 3, floats_, counts_},
        kernel_(sizes_, {polar::kArgmax, experts ? polar::kExperts : polar::kFixed, false, false,
                         false}) {
    std::mt19937 bits(1);
    std::normal_distribution<Number> normal;
    const auto drawn = [&](int64_t size, Number scale) {
      std::vector<Number> out(size);
      for (Number& one : out) one = scale * normal(bits);
      return out;
    };
    context_ = drawn(lanes_ * rounds_ * d_, 1 / std::sqrt(static_cast<Number>(d_)));
    noise_ = drawn(lanes_ * rounds_, Number(0.1));
    const std::vector<Number> theta = drawn(lanes_ * n_ * d_, 1);
    utility_.resize(lanes_ * rounds_ * n_);
    for (int64_t t = 0; t < lanes_ * rounds_; ++t)
      for (int64_t i = 0; i < n_; ++i)
        for (int64_t c = 0; c < d_; ++c)
          utility_[t * n_ + i] += theta[(t / rounds_ * n_ + i) * d_ + c] * context_[t * d_ + c];
    for (auto* one : {&inverse_, &recent_, &sum_, &theta_, &memory_, &switched_, &switched_ms_})
      one->resize(lanes_ * std::max({n_ * d_ * d_, rounds_, floats_}));
    for (auto* one : {&pulls_, &counted_, &adapter_, &loads_})
      one->resize(lanes_ * std::max({n_, counts_, rounds_}));
    for (auto* one : {&active_, &resident_, &pending_, &forced_, &sets_})
      one->reset(new bool[lanes_ * rounds_ * n_]());
    for (int64_t i = 0; i < lanes_ * n_; ++i) {
      active_[i] = true, resident_[i] = !experts || i % n_ < n_ / 3;
      for (int64_t c = 0; c < d_; ++c) inverse_[(i * d_ + c) * d_ + c] = 1;
      for (int64_t e = 0; e <= kValues; ++e)
        counted_[i / n_ * counts_ + i % n_ * (kValues + 1) + e] = i % n_ < n_ / 3;
    }
    cost_.resize(n_, Number(0.3)), size_.resize(n_, 1);
    constants_ = {Number(0.5), 1, Number(0.1), Number(0.05), 1, 1, Number(0.2),
                  static_cast<Number>(d_), static_cast<Number>(n_),
                  Number(0.9), Number(0.97), Number(0.99), 20, Number(0.125), Number(0.5)};
  }

#if defined(POLAR_HAND_WRITTEN)
  void serve() {
    hand_written(context_.data(), utility_.data(), noise_.data(), inverse_.data(), theta_.data(),
                 adapter_.data(), lanes_, rounds_, n_, d_, constants_[polar::kAlpha], 1);
  }
#else
  void serve() {
    const int32_t span[] = {0, static_cast<int32_t>(rounds_), 0};
    for (int64_t l = 0; l < lanes_; ++l) {
      const int64_t t = l * rounds_, i = l * n_;
      polar::Lane<Number> lane{&context_[t * d_], &utility_[t * n_], &noise_[t], span,
                               constants_.data(), cost_.data(), cost_.data(), cost_.data(),
                               size_.data(), &active_[i], &inverse_[i * d_ * d_],
                               &recent_[l * n_ * sizes_.packed()], &sum_[i * d_], &theta_[i * d_],
                               &pulls_[i], &resident_[i], &pending_[i], &memory_[l * floats_],
                               &counted_[l * counts_], &adapter_[t], &forced_[t], &sets_[t * n_],
                               &switched_[t], &switched_ms_[t], &loads_[t], nullptr, nullptr};
      kernel_.serve(lane);
    }
  }
#endif

 private:
  int64_t n_, d_, rounds_, lanes_, floats_, counts_;
  polar::Sizes sizes_;
  polar::Kernel<Number> kernel_;
  std::vector<Number> context_, utility_, noise_, cost_, size_, constants_;
  std::vector<Number> inverse_, recent_, sum_, theta_, memory_, switched_, switched_ms_;
  std::vector<int32_t> pulls_, counted_, adapter_, loads_;
  std::unique_ptr<bool[]> active_, resident_, pending_, forced_, sets_;
};

}  // namespace

extern "C" void* make_lanes(int64_t adapters, int64_t features, int64_t rounds, int64_t lanes,
                            bool experts) {
  return new Lanes(adapters, features, rounds, lanes, experts);
}
extern "C" void serve_lanes(void* lanes) { static_cast<Lanes*>(lanes)->serve(); }
extern "C" void drop_lanes(void* lanes) { delete static_cast<Lanes*>(lanes); }
