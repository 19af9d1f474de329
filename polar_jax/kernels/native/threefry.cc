// JAX's threefry bits as a custom call; `random_bits.py` is its other half.
#include "ffi.h"

namespace polar {

inline uint32_t turned(uint32_t x, int by) { return (x << by) | (x >> (32 - by)); }

// The hash of `jax._src.prng.threefry2x32` of key (a, b) at the places 0, 1, ... of an array, high
// halves of the counts 0; the two words of a hash make one, as where keys are partitionable.
// One loop over many places: the compiler makes vectors of it.
inline void bits(uint32_t a, uint32_t b, uint32_t* out, int64_t count) {
  const uint32_t keys[3] = {a, b, a ^ b ^ 0x1BD11BDAu};
  for (int64_t i = 0; i < count; ++i) {
    uint32_t x = keys[0], y = static_cast<uint32_t>(i) + keys[1];
    const auto mix = [&](int r0, int r1, int r2, int r3) {
      x += y, y = turned(y, r0) ^ x, x += y, y = turned(y, r1) ^ x;
      x += y, y = turned(y, r2) ^ x, x += y, y = turned(y, r3) ^ x;
    };
    mix(13, 15, 26, 6), x += keys[1], y += keys[2] + 1u;
    mix(17, 29, 16, 24), x += keys[2], y += keys[0] + 2u;
    mix(13, 15, 26, 6), x += keys[0], y += keys[1] + 3u;
    mix(17, 29, 16, 24), x += keys[1], y += keys[2] + 4u;
    mix(13, 15, 26, 6), x += keys[2], y += keys[0] + 5u;
    out[i] = x ^ y;
  }
}

inline ffi::Error Bits(In<U32> keys, Out<U32> out) {
  const int64_t count = axis(*out, 0);
  const int64_t streams = static_cast<int64_t>(keys.element_count()) / 2;
  const uint32_t* key = keys.typed_data();
  for (int64_t i = 0; i < streams; ++i, key += 2)
    bits(key[0], key[1], out->typed_data() + i * count, count);
  return ffi::Error::Success();
}

}  // namespace polar

XLA_FFI_DEFINE_HANDLER_SYMBOL(PolarBits, polar::Bits,
                              ffi::Ffi::Bind().Arg<polar::In<polar::U32>>()
                                  .Ret<ffi::Buffer<polar::U32>>());
