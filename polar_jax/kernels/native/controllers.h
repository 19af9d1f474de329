// Admission on a request: LRU, LFU, GDSF, residency values (POLAR-A). See `controllers.py`.
#pragma once

#include "lane.h"

namespace polar {

// Index of the resident with the least priority, the lowest on ties; -1 where there is none.
template <typename P>
inline int64_t least_resident(const P* priority, const bool* resident, int64_t n) {
  int64_t least = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (!resident[i]) continue;
    if (priority[i] != priority[i]) return i;  // not a number: as `jnp.argmin`
    if (least < 0 || priority[i] < priority[least]) least = i;
  }
  return least;
}

// A miss of `a`, which its request has paid for, replaces `out`.
inline void swap(bool* resident, int64_t a, int64_t out) {
  resident[out] = false;
  resident[a] = true;
}

template <typename T>
inline void admit_counts(Lane<T>& lane, int64_t n, int64_t a, bool by_frequency) {
  int32_t *priority = lane.memory_int, *clock = lane.memory_int + n;
  const bool missed = !lane.resident[a];
  if (by_frequency) priority[a] += 1;
  if (missed) {
    const int64_t out = least_resident(priority, lane.resident, n);
    if (out >= 0) swap(lane.resident, a, out);
  }
  if (!by_frequency) priority[a] = *clock;
  *clock += 1;
}

template <typename T> inline void admit_gdsf(Lane<T>& lane, int64_t n, int64_t a) {
  T *priority = lane.memory_float, *uses = priority + n, *clock = uses + n;
  const bool hit = lane.resident[a];
  uses[a] = hit ? uses[a] + T(1) : T(1);
  if (!hit) {
    const int64_t out = least_resident(priority, lane.resident, n);
    if (out >= 0) {
      *clock = priority[out];
      swap(lane.resident, a, out);
    }
  }
  priority[a] = *clock + uses[a] * lane.paging_cost[a] / lane.size[a];
}

template <typename T>
inline void admit_value(Lane<T>& lane, const Scores<T>& scores, int64_t n, int64_t a) {
  T* value = lane.memory_float;
  int64_t best = 0;
  T highest = scores.mean[0], without = -kInf<T>;
  for (int64_t i = 0; i < n; ++i) {
    if (scores.mean[i] > highest) highest = scores.mean[i], best = i;
    const T net = scores.mean[i] - lane.paging_cost[i];
    without = net > without ? net : without;
    value[i] *= lane.numbers[kOwn];
  }
  const T saving = highest - without;
  value[best] += saving > 0 ? saving : T(0);
  if (lane.resident[a]) return;
  const int64_t out = least_resident(value, lane.resident, n);
  if (out >= 0 && value[a] >= value[out]) swap(lane.resident, a, out);
}

}  // namespace polar
