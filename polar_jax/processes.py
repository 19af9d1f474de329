"""Several processes that run one program together (`jax.distributed`): what they tell each other.

Process 0 leads. Every function here is called by all processes at the same place of the same
program, with arrays of equal shapes; with one process alone it costs nothing. Compiled programs
need none of this, as no lane reads another's numbers.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

# A process that says nothing for so long is dead; one that is killed is noticed at once.
HEARTBEAT_SECONDS = 30
_JOIN_SECONDS = 300
# Gathered at a time: devices hold so many bytes per process.
_PIECE, _LEAST_PIECE = 2**24, 2**12


class LostError(OSError):
    """Another process of this run has ended or cannot be reached."""


def join() -> None:
    """Joins the processes that a launcher such as `srun` has started; before JAX is used.

    Raises:
      ValueError: where JAX finds no launcher, or the processes do not find each other.
    """
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            local_device_ids=local_devices(os.environ),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=_JOIN_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            "--distributed must be started by srun or another launcher that JAX knows, and found "
            f"none ({error})"
        ) from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--distributed: the processes did not find each other ({reason})."
        ) from error


def leave() -> None:
    """Ends together with the others, so that none is taken for dead."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def abandon(code: int) -> None:
    """Ends this process at once where it has not left the others: to wait for them may be for ever.

    Args:
      code: the exit code.
    """
    if jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def local_devices(env: Mapping[str, str]) -> list[int] | None:
    """Which of the accelerators that a process sees are its own; None lets JAX decide.

    JAX gives a Slurm task the accelerator of its number on the node. That is wrong where a task
    sees its own accelerators alone, or is the only one of its node.

    Args:
      env: environment variables.
    """
    seen = [one for one in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if not seen or "SLURM_LOCALID" not in env:
        return None
    # "2(x4),1": so many tasks on each node, in the order of the nodes.
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", "")
    alone = tasks.partition("(")[0] == "1" and "," not in tasks
    own = any(name in env for name in ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"))
    return list(range(len(seen))) if alone or own else None


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def leads() -> bool:
    """Whether this one leads."""
    return jax.process_index() == 0


def gather(values: np.ndarray) -> np.ndarray:
    """Every process's array, `[processes, ...]`, on all of them.

    Args:
      values: of the same shape and type everywhere.

    Raises:
      LostError: if a process has ended.
    """
    if count() == 1:
        return values[None]
    flat = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    pieces = []
    for first in range(0, flat.size, _PIECE):
        piece = flat[first : first + _PIECE]
        # A program is compiled per size, so that few sizes are used.
        room = np.zeros(max(_LEAST_PIECE, 1 << (piece.size - 1).bit_length()), np.uint8)
        room[: piece.size] = piece
        try:
            pieces.append(multihost_utils.process_allgather(room)[:, : piece.size])
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # as the transport has it
            raise LostError("another process of this run has ended") from error
    whole = np.concatenate(pieces, axis=1) if pieces else np.zeros((count(), 0), np.uint8)
    return np.frombuffer(whole.tobytes(), values.dtype).reshape(count(), *values.shape)


def tell(data: bytes | None) -> bytes:
    """What process 0 says, on all of them.

    Args:
      data: on process 0, what to say; not read elsewhere.

    Raises:
      LostError: if a process has ended.
    """
    said = (data or b"") if leads() else b""
    size = int(gather(np.asarray([len(said)], np.int64))[0, 0])
    buffer = np.zeros(size, np.uint8)
    buffer[: len(said)] = np.frombuffer(said, np.uint8)
    return gather(buffer)[0].tobytes()


def any_of(flags: Sequence[bool]) -> list[bool]:
    """Which of some flags are set on any process."""
    return np.any(gather(np.asarray(flags, bool)), axis=0).tolist()


def least(value: int) -> int:
    """The smallest of all processes' values."""
    return int(gather(np.asarray([value], np.int64)).min())


def put(values: Any, sharding: Any) -> Any:
    """Host arrays on devices; each process puts its own devices' parts there.

    Args:
      values: a tree of them, equal everywhere.
      sharding: where they go.
    """
    if count() == 1:
        return jax.device_put(values, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__),
        values,
    )


def fetch(values: Array) -> np.ndarray:
    """An array that is cut along its first axis on the host, whichever processes have its parts.

    Raises:
      LostError: if a process has ended.
    """
    if count() == 1:
        return np.asarray(values)
    parts = sorted(values.addressable_shards, key=lambda part: part.index[0].start or 0)
    mine = np.concatenate([np.asarray(part.data) for part in parts])
    return gather(mine).reshape(values.shape)
