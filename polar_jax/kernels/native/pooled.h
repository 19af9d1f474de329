// What all adapters have in common: one ridge regression over all their rewards, which is what is
// expected of an adapter that nobody has tried (`PooledState` in types.py).
#pragma once

#include "vectors.h"

namespace polar {

template <typename T> class Pooled {
 public:
  explicit Pooled(int64_t features)
      : d_(features), d_pad_(round_up(features, kWidth<T>)) {
    inverse_.resize(d_ * d_pad_);
    for (Array<T>* one : {&theta_, &direction_, &scaled_}) one->resize(d_pad_);
  }

  const T* theta() const { return theta_.get(); }

  void begin(const T* inverse, const T* theta) {
    for (int64_t r = 0; r < d_; ++r)
      pad(inverse_.get() + r * d_pad_, inverse + r * d_, d_, d_pad_);
    pad(theta_.get(), theta, d_, d_pad_);
  }

  void end(T* inverse, T* theta) const {
    for (int64_t r = 0; r < d_; ++r)
      for (int64_t c = 0; c < d_; ++c) inverse[r * d_ + c] = inverse_[r * d_pad_ + c];
    for (int64_t c = 0; c < d_; ++c) theta[c] = theta_[c];
  }

  // Adds one observation, whosesoever it is; `x` is padded with zeros.
  void observe(const T* x, T reward) {
    T *inverse = inverse_.get(), *theta = theta_.get();
    T *direction = direction_.get(), *scaled = scaled_.get();
    const int64_t d = d_, d_pad = d_pad_;
    for (int64_t k = 0; k < d_pad; k += kWidth<T>) {
      Vec<T> part = {};
      for (int64_t c = 0; c < d; ++c) part += load(inverse + c * d_pad + k) * x[c];
      store(direction + k, part);
    }
    const T growth = T(1) + dot(direction, x, d_pad);
    const T step = (reward - dot(theta, x, d_pad)) / growth, root = T(1) / std::sqrt(growth);
    for (int64_t k = 0; k < d_pad; k += kWidth<T>) {
      store(scaled + k, load(direction + k) * root);
      store(theta + k, load(theta + k) + step * load(direction + k));
    }
    for (int64_t c = 0; c < d; ++c)
      for (int64_t k = 0; k < d_pad; k += kWidth<T>) {
        T* here = inverse + c * d_pad + k;
        store(here, load(here) - scaled[c] * load(scaled + k));
      }
  }

 private:
  int64_t d_, d_pad_;
  Array<T> inverse_, theta_, direction_, scaled_;
};

}  // namespace polar
