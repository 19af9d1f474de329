"""Functions of one lane over the lanes of every device's tile: the only place with lane `vmap`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from polar_jax import chunks, draws

LANES, SHARED = PartitionSpec("lanes"), PartitionSpec()


def over_lanes(
    function: Callable[..., Any], mesh: Mesh, *, lanes: int, shared: int, donate: bool = False
) -> Any:
    """`jit` of `function` over the lanes of every device's tile, side by side.

    Args:
      function: of one lane.
      mesh: the devices.
      lanes: how many of its first arguments have a lane axis.
      shared: how many of its last arguments are the same for all.
      donate: whether its first argument's memory may be reused.
    """
    mapped = jax.vmap(function, in_axes=(0,) * lanes + (None,) * shared)
    return _over_devices(mapped, mesh, lanes, shared, donate)


def over_blocks(function: Callable[..., Any], mesh: Mesh, *, num_blocks: int) -> Any:
    """`jit` of what draws a block of a lane, over blocks and the lanes of every tile.

    On CPUs one loop takes the lanes that count one after the other, and leaves the others
    as they are: a lane alone takes a lane's time. Its body is the same for any number of lanes and
    blocks, and so are a lane's bits. Side by side is faster where a step has little to do
    (`docs/performance.md`).

    Args:
      function: of a lane's key, instance and constants, the block's number, and data that all
        lanes share; its results have rounds along their first axis.
      mesh: the devices.
      num_blocks: blocks of a call.

    Returns:
      A function of rounds of `drawn_shapes`, whose memory it takes (on CPUs; others draw all
      lanes anew); `[L]` bool, which lanes count, those that do first; the lane's
      arguments, `[L, ...]` each; the first block's number; the shared data.
    """
    on_host = mesh.devices.flat[0].platform == "cpu"
    mapped = functools.partial(_in_turn if on_host else _side_by_side, function, num_blocks)
    return _over_devices(mapped, mesh, 5, 2, on_host)


def _lane_blocks(
    function: Callable[..., Any], num_blocks: int, own: Sequence[Any], first: Array, data: Any
) -> Any:
    """Blocks of one lane, one after the other along the axis of rounds."""
    blocks = first + jnp.arange(num_blocks, dtype=jnp.int32)
    drawn = jax.vmap(lambda block: function(*own, block, data))(blocks)
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), drawn)


def drawn_shapes(function: Callable[..., Any], num_blocks: int) -> Callable[..., Any]:
    """What gives rounds of the shapes that `over_blocks` gives, from all but its first argument."""
    return functools.partial(_side_by_side, function, num_blocks, None)


def _side_by_side(
    function: Callable[..., Any], num_blocks: int, room: Any, counted: Array | None, *args: Any
) -> Any:
    del room, counted
    *lanes, first, data = args
    return jax.vmap(lambda *own: _lane_blocks(function, num_blocks, own, first, data))(*lanes)


def _in_turn(
    function: Callable[..., Any], num_blocks: int, room: Any, counted: Array, *args: Any
) -> Any:
    *lanes, first, data = args
    # As many blocks at a time as a chunk has, unless replans or a large shape cut it short: there,
    # what is drawn too much is little beside them.
    together = chunks.MAX_ROUNDS // draws.BLOCK
    groups = -(-num_blocks // together)

    def draw(lane: Array, group: Array) -> Any:
        own = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, lane, keepdims=False), lanes)
        return _lane_blocks(function, together, own, first + group * together, data)

    def put(number: Array, done: Any) -> Any:
        lane, group = number // groups, number % groups

        def into(rounds: Array, drawn: Array) -> Array:
            begin = (lane, group * drawn.shape[0], *(jnp.int32(0),) * (drawn.ndim - 1))
            return jax.lax.dynamic_update_slice(rounds, drawn[None], begin)

        return jax.tree.map(into, done, draw(lane, group))

    zero, cut = jnp.int32(0), groups * together - num_blocks
    if cut:
        room = jax.tree.map(
            lambda x: jnp.pad(x, [(0, 0), (0, cut * draws.BLOCK)] + [(0, 0)] * (x.ndim - 2)), room
        )
    count = jnp.sum(counted, dtype=jnp.int32) * jnp.int32(groups)
    drawn = jax.lax.fori_loop(zero, count, put, room)
    return jax.tree.map(lambda x: x[:, : num_blocks * draws.BLOCK], drawn)


def _over_devices(
    mapped: Callable[..., Any], mesh: Mesh, lanes: int, shared: int, donate: bool
) -> Any:
    specs = (LANES,) * lanes + (SHARED,) * shared
    sharded = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=LANES, check_vma=False)
    return jax.jit(sharded, donate_argnums=(0,) if donate else ())
