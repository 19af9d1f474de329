// Serves lanes of made-up numbers by every rule of the native kernel, without JAX: prints a line per
// case with a hash of all that came of it. `test_portable_kernel.py` runs it on other processors.
#include <cstdio>
#include <memory>

#include "rounds.cc"

namespace {

constexpr int64_t kRounds = 65, kAdapters = 11, kSlots = 3, kValues = 3;

// Uniform numbers that every compiler and processor agrees on: 24 bits each (splitmix64).
class Numbers {
 public:
  double next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 40) / (1 << 24);
  }

 private:
  uint64_t state_ = 1;
};

// FNV-1a.
class Hash {
 public:
  template <typename T> void add(const T* values, int64_t size) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values);
    for (size_t i = 0; i < sizeof(T) * static_cast<size_t>(size); ++i)
      value = (value ^ bytes[i]) * 0x100000001B3u;
  }
  uint64_t value = 0xCBF29CE484222325u;
};

template <typename T> std::unique_ptr<T[]> zeros(int64_t size) {
  return std::make_unique<T[]>(static_cast<size_t>(size));
}

template <typename T> std::unique_ptr<T[]> drawn(Numbers& from, int64_t size, double low) {
  auto made = zeros<T>(size);
  for (int64_t i = 0; i < size; ++i) made[i] = static_cast<T>(low + (1.0 - low) * from.next());
  return made;
}

template <typename T> uint64_t served(int64_t d, const polar::Attributes& with) {
  const int64_t n = kAdapters, experts = kValues + 1;
  const int64_t floats = experts + 2 * n * kValues + n, counts = n * experts + n + 1;
  const polar::Sizes sizes{kRounds, n, d, polar::kOwn + kValues + 3, floats, counts};
  Numbers numbers;
  const auto context = drawn<T>(numbers, kRounds * d, -1.0);
  const auto utility = drawn<T>(numbers, kRounds * n, -1.0);
  const auto noise = drawn<T>(numbers, kRounds, -0.2);
  const auto cost = drawn<T>(numbers, n, 0.0), size = drawn<T>(numbers, n, 0.5);
  // alpha, ridge, sigma, delta, theta's bound, the weight of costs, the margin; then the rule's.
  const T constants[] = {T(0.5), T(1), T(0.1), T(0.05), T(1), T(1), T(0.2), static_cast<T>(d),
                         static_cast<T>(n), T(0.9), T(0.97), T(0.99), T(20), T(0.125), T(0.5)};
  const int32_t span[] = {0, static_cast<int32_t>(kRounds), 2};
  auto active = zeros<bool>(n), resident = zeros<bool>(n), pending = zeros<bool>(n);
  auto inverse = zeros<T>(n * d * d), recent = zeros<T>(n * sizes.packed());
  auto sum = zeros<T>(n * d), theta = zeros<T>(n * d), memory = zeros<T>(floats);
  auto common = zeros<T>(d * d), common_theta = zeros<T>(d);
  auto pulls = zeros<int32_t>(n), count = zeros<int32_t>(counts);
  for (int64_t i = 0; i < n; ++i) {
    active[i] = i + 1 < n, resident[i] = i < kSlots;
    for (int64_t e = 0; e < experts && with.controller == polar::kExperts; ++e)
      count[i * experts + e] = i < kSlots;
    for (int64_t c = 0; c < d; ++c) inverse[(i * d + c) * d + c] = T(1);
  }
  for (int64_t c = 0; c < d; ++c) common[c * d + c] = T(1);
  auto adapter = zeros<int32_t>(kRounds), loads = zeros<int32_t>(kRounds);
  auto forced = zeros<bool>(kRounds), sets = zeros<bool>(kRounds * n);
  auto switched = zeros<T>(kRounds), switched_ms = zeros<T>(kRounds);
  polar::Lane<T> lane{context.get(), utility.get(), noise.get(), span, constants,
                      cost.get(), cost.get(), cost.get(), size.get(), active.get(),
                      inverse.get(), recent.get(), sum.get(), theta.get(),
                      pulls.get(), resident.get(), pending.get(), memory.get(), count.get(),
                      adapter.get(), forced.get(), sets.get(),
                      switched.get(), switched_ms.get(), loads.get(),
                      common.get(), common_theta.get()};
  polar::Kernel<T>(sizes, with).serve(lane);
  Hash hash;
  hash.add(inverse.get(), n * d * d), hash.add(recent.get(), n * sizes.packed());
  hash.add(sum.get(), n * d), hash.add(theta.get(), n * d), hash.add(memory.get(), floats);
  hash.add(common.get(), d * d), hash.add(common_theta.get(), d);
  hash.add(pulls.get(), n), hash.add(count.get(), counts), hash.add(resident.get(), n);
  hash.add(adapter.get(), kRounds), hash.add(loads.get(), kRounds);
  hash.add(forced.get(), kRounds), hash.add(sets.get(), kRounds * n);
  hash.add(switched.get(), kRounds), hash.add(switched_ms.get(), kRounds);
  return hash.value;
}

template <typename T> void every_rule(const char* name) {
  for (const int64_t features : {5, 8, 16, 32})
    for (int64_t controller = polar::kFixed; controller <= polar::kExperts; ++controller)
      for (int64_t selection = polar::kArgmax; selection <= polar::kRelevant; ++selection)
        for (const int way : {0, 1, 2, 4, 7}) {
          const polar::Attributes with{selection, controller, (way & 1) != 0, (way & 2) != 0,
                                       (way & 4) != 0};
          std::printf("%s %d features, controller %d, selection %d, way %d: %016llx\n", name,
                      static_cast<int>(features), static_cast<int>(controller),
                      static_cast<int>(selection), way,
                      static_cast<unsigned long long>(served<T>(features, with)));
        }
}

}  // namespace

int main() {
  every_rule<float>("float32");
  every_rule<double>("float64");
}
