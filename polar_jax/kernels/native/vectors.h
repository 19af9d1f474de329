// Small vector helpers: 64 bytes at a time, lowered by the compiler to what the processor has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace polar {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif

// Vectors, halves of which the compiler takes apart where the processor's are shorter.
template <typename T> struct Wide {
  typedef T vec __attribute__((vector_size(kBytes)));
  typedef T four __attribute__((vector_size(4 * sizeof(T))));
};
template <typename T> using Vec = typename Wide<T>::vec;
template <typename T> using Four = typename Wide<T>::four;
template <typename T> constexpr int kWidth = kBytes / static_cast<int>(sizeof(T));
template <typename T> constexpr T kInf = std::numeric_limits<T>::infinity();

// A whole number of the same size.
template <typename T> using Whole = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T> inline Vec<T> load(const T* from) {
  Vec<T> out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}
template <typename T> inline void store(T* to, Vec<T> value) { std::memcpy(to, &value, kBytes); }
template <typename T> inline Four<T> load4(const T* from) {
  Four<T> out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}
template <typename T> inline void store4(T* to, Four<T> value) {
  std::memcpy(to, &value, sizeof(value));
}

// Four numbers as often as they go into a vector. Compilers take a detour over memory for it.
#if defined(__AVX512F__)
inline Vec<float> repeat4(const float* from) { return _mm512_broadcast_f32x4(_mm_loadu_ps(from)); }
inline Vec<double> repeat4(const double* from) {
  return _mm512_broadcast_f64x4(_mm256_loadu_pd(from));
}
#else
#if defined(__AVX__)
inline Vec<float> repeat4(const float* from) {
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
}
#else
inline Vec<float> repeat4(const float* from) {
  return Vec<float>{from[0], from[1], from[2], from[3], from[0], from[1], from[2], from[3]};
}
#endif
inline Vec<double> repeat4(const double* from) { return load(from); }
#endif

// a * b + c. Compilers fuse it or not as they see fit, here they must not choose: a sum that is
// taken twice is to be the same to the bit.
#if defined(__FMA__)
inline __m128 fused(__m128 a, __m128 b, __m128 c) { return _mm_fmadd_ps(a, b, c); }
inline __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d fused(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
#if defined(__AVX512F__)
inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d fused(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
#endif
#else
template <typename V> inline V fused(V a, V b, V c) { return a * b + c; }
#endif
// Whether it is sure that they do not; FMA4 is fused as they like.
#if defined(__x86_64__) && !defined(__FMA4__)
constexpr bool kSureSums = true;
#else
constexpr bool kSureSums = false;
#endif

// Numbers of a vector by their places; compilers have one form of it or the other.
template <typename V> using Place = decltype(V{} < V{});
#if defined(__clang__)
#define POLAR_SHUFFLE_TWO(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define POLAR_SHUFFLE_TWO(x, y, ...) __builtin_shuffle(x, y, Place<decltype(x)>{__VA_ARGS__})
#endif
#define POLAR_SHUFFLE(x, ...) POLAR_SHUFFLE_TWO(x, x, __VA_ARGS__)

// Every number replaced by the sum of the four that it is one of.
inline Vec<float> sum4(Vec<float> x) {
#if defined(__AVX512F__)
  x += POLAR_SHUFFLE(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return x + POLAR_SHUFFLE(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
#else
  x += POLAR_SHUFFLE(x, 1, 0, 3, 2, 5, 4, 7, 6);
  return x + POLAR_SHUFFLE(x, 2, 3, 0, 1, 6, 7, 4, 5);
#endif
}
inline Vec<double> sum4(Vec<double> x) {
#if defined(__AVX512F__)
  x += POLAR_SHUFFLE(x, 1, 0, 3, 2, 5, 4, 7, 6);
  return x + POLAR_SHUFFLE(x, 2, 3, 0, 1, 6, 7, 4, 5);
#else
  x += POLAR_SHUFFLE(x, 1, 0, 3, 2);
  return x + POLAR_SHUFFLE(x, 2, 3, 0, 1);
#endif
}

// The sums of four fours, one after the other.
template <typename T> inline Four<T> sums_of_four(const Four<T>* from) {
  const Four<T> a = from[0], b = from[1], c = from[2], d = from[3];
  const Four<T> ab = POLAR_SHUFFLE_TWO(a, b, 0, 4, 1, 5) + POLAR_SHUFFLE_TWO(a, b, 2, 6, 3, 7);
  const Four<T> cd = POLAR_SHUFFLE_TWO(c, d, 0, 4, 1, 5) + POLAR_SHUFFLE_TWO(c, d, 2, 6, 3, 7);
  return POLAR_SHUFFLE_TWO(ab, cd, 0, 1, 4, 5) + POLAR_SHUFFLE_TWO(ab, cd, 2, 3, 6, 7);
}

// Square roots.
#if defined(__AVX512F__)
inline Vec<float> roots(Vec<float> x) { return _mm512_sqrt_ps(x); }
inline Vec<double> roots(Vec<double> x) { return _mm512_sqrt_pd(x); }
#else
template <typename V> inline V roots(V x) {
  for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = std::sqrt(x[i]);
  return x;
}
#endif

// Number j of vector j % 4, for every j.
template <typename T> inline Vec<T> one_of_each(const Vec<T>* from) {
  typedef decltype(from[0] < from[1]) Mask;
  Mask second = {}, third = {}, fourth = {};
  for (int j = 0; j < kWidth<T>; ++j)
    second[j] = -(j % 4 == 1), third[j] = -(j % 4 == 2), fourth[j] = -(j % 4 == 3);
  const Vec<T> low = second ? from[1] : from[0];
  return fourth ? from[3] : third ? from[2] : low;
}

// Sum and largest of a vector's numbers; bits of the places of a number in it.
template <typename T> inline T sum(Vec<T> x) {
  T total = 0;
  for (int i = 0; i < kWidth<T>; ++i) total += x[i];
  return total;
}
template <typename T> inline T largest(Vec<T> x) {
  T most = x[0];
  for (int i = 1; i < kWidth<T>; ++i) most = x[i] > most ? x[i] : most;
  return most;
}
template <typename T> inline uint64_t places_of(Vec<T> x, T value) {
  uint64_t places = 0;
  for (int i = 0; i < kWidth<T>; ++i) places |= static_cast<uint64_t>(x[i] == value) << i;
  return places;
}
template <typename M> inline bool any(M mask) {
  int64_t found = 0;
  for (size_t i = 0; i < sizeof(mask) / sizeof(mask[0]); ++i) found |= mask[i];
  return found != 0;
}
#if defined(__AVX512F__)
inline bool any(Place<Vec<float>> mask) {
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
}
template <> inline float sum<float>(Vec<float> x) { return _mm512_reduce_add_ps(x); }
template <> inline float largest<float>(Vec<float> x) { return _mm512_reduce_max_ps(x); }
template <> inline uint64_t places_of<float>(Vec<float> x, float value) {
  return _mm512_cmp_ps_mask(x, _mm512_set1_ps(value), _CMP_EQ_OQ);
}
#elif defined(__AVX__)
inline bool any(Place<Vec<float>> mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
template <> inline float sum<float>(Vec<float> x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
template <> inline float largest<float>(Vec<float> x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
template <> inline uint64_t places_of<float>(Vec<float> x, float value) {
  const __m256 same = _mm256_cmp_ps(x, _mm256_set1_ps(value), _CMP_EQ_OQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(same));
}
#endif

// A row and its padding, which a lane that went wrong may have left something in.
template <typename T> inline void pad(T* to, const T* from, int64_t count, int64_t padded) {
  for (int64_t c = 0; c < padded; ++c) to[c] = c < count ? from[c] : T(0);
}

constexpr inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Sum of products of two arrays padded with zeros to whole vectors.
template <typename T> inline T dot(const T* a, const T* b, int64_t padded) {
  Vec<T> total = {};
  for (int64_t i = 0; i < padded; i += kWidth<T>) total += load(a + i) * load(b + i);
  return sum<T>(total);
}

template <typename T> struct Best {
  T value;
  int32_t index;
};

// Largest of `padded` numbers (a whole number of vectors, padded with -inf) and its first place.
// As with `jnp.argmax`, what is not a number is larger than all that are.
template <typename T> inline Best<T> first_max(const T* values, int64_t padded) {
  Vec<T> best = load(values);
  Place<Vec<T>> wrong = best != best;
  for (int64_t i = kWidth<T>; i < padded; i += kWidth<T>) {
    const Vec<T> now = load(values + i);
    best = now > best ? now : best;
    wrong |= now != now;
  }
  if (any(wrong))
    for (int64_t i = 0; i < padded; ++i)
      if (values[i] != values[i]) return {values[i], static_cast<int32_t>(i)};
  const T value = largest<T>(best);
  // Up to 64 at once: a branch for every vector would be guessed wrong half the time.
  for (int64_t first = 0; first < padded; first += 64) {
    const int64_t count = padded - first < 64 ? padded - first : 64;
    uint64_t places = 0;
    for (int64_t i = 0; i < count; i += kWidth<T>)
      places |= places_of<T>(load(values + first + i), value) << i;
    if (places) return {value, static_cast<int32_t>(first + __builtin_ctzll(places))};
  }
  return {value, 0};
}

// Memory aligned to vectors, reused from lane to lane.
template <typename T> class Array {
 public:
  void resize(int64_t count, T fill = T()) {
    held_.assign(static_cast<size_t>(count + 64 / sizeof(T)), fill);
    const auto place = reinterpret_cast<uintptr_t>(held_.data());
    data_ = reinterpret_cast<T*>((place + 63) / 64 * 64);
  }
  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

  Array() = default;
  Array(Array&&) = default;
  Array(const Array&) = delete;  // it would point into the other one

 private:
  std::vector<T> held_;
  T* data_ = nullptr;
};

}  // namespace polar
