"""Random bits apart from what is made of them, and as a native call several times as fast.

Only integers are made here, and a barrier keeps the compiler from mixing them with the arithmetic
that follows: so that arithmetic is compiled alike whoever made the bits, and streams are the same
to the bit with the native library and without it. XLA's own loop over the rounds of the hash keeps
arrays in memory; the native one has vectors in registers.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax import Array

_PLAIN = "threefry2x32"


def apart(key: Array, *, native: bool) -> Array:
    """The same keys, whose bits are made apart.

    Args:
      key: threefry keys of any shape.
      native: whether the native call makes them.
    """
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_implementation(native))


@functools.cache
def _implementation(native: bool) -> Hashable:
    make = _native_bits if native else _xla_bits

    def bits(key: Array, bit_width: int, shape: Sequence[int]) -> Array:
        return jax.lax.optimization_barrier(make(key, bit_width, tuple(shape)))

    return jax.extend.random.define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl=_PLAIN)),
        split=lambda key, shape: jax.random.key_data(jax.random.split(_plain(key), shape)),
        random_bits=bits,
        fold_in=lambda key, data: jax.random.key_data(jax.random.fold_in(_plain(key), data)),
        name=f"{'native_' * native}threefry2x32_apart",
        tag=f"{'native_' * native}fry",
    )


def _plain(key: Array) -> Array:
    return jax.random.wrap_key_data(key, impl=_PLAIN)


def _xla_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    return jax.random.bits(_plain(key), shape, jnp.dtype(f"uint{bit_width}"))


def _native_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    # The call makes the words of partitionable keys, whose counts fit into one word.
    flags: Any = jax.config  # which has its flags at run time alone
    partitionable = flags.jax_threefry_partitionable
    if bit_width != 32 or not 0 < count < 2**32 or not partitionable:
        return _xla_bits(key, bit_width, shape)
    out = jax.ShapeDtypeStruct((count,), jnp.uint32)
    call: Callable[..., Array] = jax.ffi.ffi_call("polar_bits", out, vmap_method="broadcast_all")
    return call(key).reshape(shape)
