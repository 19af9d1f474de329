// `linalg.refresh` over many lanes as one XLA custom call; `native_refresh.py` is its other half.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ffi.h"
#include "vectors.h"

namespace polar {

template <typename T> class Refresh {
 public:
  Refresh(int64_t adapters, int64_t features)
      : n_(adapters), d_(features), d_pad_(round_up(features, kWidth<T>)) {
    for (Array<T>* one : {&whole_, &factor_, &root_, &inverse_}) one->resize(d_ * d_pad_);
    total_.resize(d_pad_);
  }

  // Inverse and estimate of every adapter that has learnt since the last time, from its sums; the
  // others' are what they would become but for rounding.
  void adapters(T* precision, T* recent, T* inverse, T* sum, T* sum_recent, T* theta) {
    const int64_t packed = d_ * (d_ + 1) / 2;
    for (int64_t i = 0; i < n_; ++i, precision += d_ * d_, recent += packed, inverse += d_ * d_,
                 sum += d_, sum_recent += d_, theta += d_) {
      const auto nothing = [](T number) { return number == T(0); };
      if (std::all_of(recent, recent + packed, nothing) &&
          std::all_of(sum_recent, sum_recent + d_, nothing))
        continue;
      const T* from = recent;
      for (int64_t r = 0; r < d_; ++r)
        for (int64_t c = 0; c <= r; ++c, ++from) {
          precision[r * d_ + c] += *from;
          if (c < r) precision[c * d_ + r] += *from;
        }
      for (int64_t c = 0; c < d_; ++c) sum[c] += sum_recent[c];
      std::fill(recent, recent + packed, T(0)), std::fill(sum_recent, sum_recent + d_, T(0));
      for (int64_t r = 0; r < d_; ++r)
        pad(whole_.get() + r * d_pad_, precision + r * d_, d_, d_pad_);
      solve(sum, inverse, theta);
    }
  }

  // The common prior from all adapters' sums, each of which holds one `ridge I`.
  void pooled(const T* precision, const T* sum, T ridge, T* inverse, T* theta) {
    std::fill(whole_.get(), whole_.get() + d_ * d_pad_, T(0));
    std::fill(total_.get(), total_.get() + d_pad_, T(0));
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t r = 0; r < d_; ++r) {
        total_[r] += sum[i * d_ + r];
        for (int64_t c = 0; c < d_; ++c)
          whole_[r * d_pad_ + c] += precision[(i * d_ + r) * d_ + c];
      }
    for (int64_t r = 0; r < d_; ++r) whole_[r * d_pad_ + r] -= static_cast<T>(n_ - 1) * ridge;
    solve(total_.get(), inverse, theta);
  }

 private:
  // The inverse of `whole_` by Cholesky and its product with `sum`, where all of it is finite.
  void solve(const T* sum, T* inverse, T* theta) {
    factorise();
    invert();
    // The inverse is the root's product with itself: row by row, what is above the diagonal as well.
    std::fill(inverse_.get(), inverse_.get() + d_ * d_pad_, T(0));
    for (int64_t k = 0; k < d_; ++k)
      for (int64_t r = 0; r <= k; ++r) add(inverse_, r, root_[k * d_pad_ + r], root_, k, 0, k + 1);
    for (int64_t r = 0; r < d_; ++r)
      for (int64_t c = 0; c < d_; ++c)
        if (!std::isfinite(inverse_[r * d_pad_ + c])) return;
    for (int64_t r = 0; r < d_; ++r) {
      const T* row = inverse_.get() + r * d_pad_;
      std::memcpy(inverse + r * d_, row, sizeof(T) * static_cast<size_t>(d_));
      T product = 0;
      for (int64_t c = 0; c < d_; ++c) product += row[c] * sum[c];
      theta[r] = product;
    }
  }

  // Rows of the transposed factor.
  void factorise() {
    for (int64_t j = 0; j < d_; ++j) {
      T* row = factor_.get() + j * d_pad_;
      std::memcpy(row, whole_.get() + j * d_pad_, sizeof(T) * static_cast<size_t>(d_pad_));
      for (int64_t k = 0; k < j; ++k) add(factor_, j, -factor_[k * d_pad_ + j], factor_, k, j, d_);
      const T scale = T(1) / std::sqrt(row[j]);
      for (int64_t c = 0; c < d_; ++c) row[c] = c < j ? T(0) : row[c] * scale;
    }
  }

  // The factor's inverse, by forward substitution.
  void invert() {
    for (int64_t j = 0; j < d_; ++j) {
      T* row = root_.get() + j * d_pad_;
      std::fill(row, row + d_pad_, T(0));
      for (int64_t k = 0; k < j; ++k)
        add(root_, j, -factor_[k * d_pad_ + j], root_, k, 0, k + 1);
      row[j] = T(1);
      const T scale = T(1) / factor_[j * d_pad_ + j];
      for (int64_t c = 0; c <= j; ++c) row[c] *= scale;
    }
  }

  // Adds `weight` times a row to a row, numbers `begin` to `end` at least, by whole vectors.
  void add(Array<T>& to, int64_t row, T weight, const Array<T>& from, int64_t other, int64_t begin,
           int64_t end) {
    T* here = to.get() + row * d_pad_;
    const T* there = from.get() + other * d_pad_;
    for (int64_t c = begin / kWidth<T> * kWidth<T>; c < end; c += kWidth<T>)
      store(here + c, load(here + c) + weight * load(there + c));
  }

  int64_t n_, d_, d_pad_;
  Array<T> whole_, factor_, root_, inverse_, total_;  // rows padded
};

template <typename T, ffi::DataType F>
ffi::Error Renew(In<PRED> counted, In<F> ridge, In<F> precision_in, In<F> recent_in,
                 In<F> inverse_in, In<F> sum_in, In<F> sum_recent_in, In<F> theta_in,
                 In<F> pooled_inverse_in, In<F> pooled_theta_in, Out<F> precision, Out<F> recent,
                 Out<F> inverse, Out<F> sum, Out<F> sum_recent, Out<F> theta,
                 Out<F> pooled_inverse, Out<F> pooled_theta, bool pooled) {
  const int64_t n = axis(theta_in, 1), d = axis(theta_in, 0), packed = d * (d + 1) / 2;
  const int64_t lanes = static_cast<int64_t>(counted.element_count());
  T *own[] = {settle(precision_in, precision), settle(recent_in, recent),
              settle(inverse_in, inverse),     settle(sum_in, sum),
              settle(sum_recent_in, sum_recent), settle(theta_in, theta)};
  T* common = settle(pooled_inverse_in, pooled_inverse);
  T* common_theta = settle(pooled_theta_in, pooled_theta);
  std::optional<Refresh<T>> held;
  try {
    held.emplace(n, d);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a lane's statistics");
  }
  for (int64_t l = 0; l < lanes; ++l) {
    // What only fills up a tile is left as it is.
    if (!counted.typed_data()[l]) continue;
    const int64_t square = l * n * d * d, vector = l * n * d;
    held->adapters(own[0] + square, own[1] + l * n * packed, own[2] + square, own[3] + vector,
                   own[4] + vector, own[5] + vector);
    if (pooled)
      held->pooled(own[0] + square, own[3] + vector, ridge.typed_data()[l], common + l * d * d,
                   common_theta + l * d);
  }
  return ffi::Error::Success();
}

template <ffi::DataType F> auto RenewBinding() {
  using A = In<F>;
  using R = ffi::Buffer<F>;
  return ffi::Ffi::Bind()
      .template Arg<In<PRED>>().template Arg<A>().template Arg<A>().template Arg<A>()
      .template Arg<A>().template Arg<A>().template Arg<A>().template Arg<A>()
      .template Arg<A>().template Arg<A>()
      .template Ret<R>().template Ret<R>().template Ret<R>().template Ret<R>()
      .template Ret<R>().template Ret<R>().template Ret<R>().template Ret<R>()
      .template Attr<bool>("pooled");
}

}  // namespace polar

XLA_FFI_DEFINE_HANDLER_SYMBOL(PolarRefreshF32, (polar::Renew<float, ffi::DataType::F32>),
                              polar::RenewBinding<ffi::DataType::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(PolarRefreshF64, (polar::Renew<double, ffi::DataType::F64>),
                              polar::RenewBinding<ffi::DataType::F64>());
