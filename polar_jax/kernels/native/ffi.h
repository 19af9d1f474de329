// What every custom call needs of XLA's interface.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <optional>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace polar {

template <ffi::DataType type> using In = ffi::Buffer<type>;
template <ffi::DataType type> using Out = ffi::Result<ffi::Buffer<type>>;
constexpr auto S32 = ffi::DataType::S32;
constexpr auto U32 = ffi::DataType::U32;
constexpr auto PRED = ffi::DataType::PRED;

// Length of an axis, counted from the last one.
template <typename Buffer> int64_t axis(const Buffer& buffer, size_t from_last) {
  const auto shape = buffer.dimensions();
  return from_last < shape.size() ? shape[shape.size() - 1 - from_last] : 1;
}

// Results lie where their arguments lay; where XLA gave them another place, they begin as copies.
template <typename From, typename To> auto* settle(const From& from, To& to) {
  auto* data = to->typed_data();
  if (data != from.typed_data()) std::memcpy(data, from.typed_data(), from.size_bytes());
  return data;
}

}  // namespace polar
