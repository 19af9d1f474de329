"""Packed statistics in XLA, in three forms, against full ones, as docs/performance.md has them.

Usage, from the repository's root::

    python tests/bench/packed_in_xla.py            # the figures of docs/performance.md
    python tests/bench/packed_in_xla.py --small    # a quick look

A loop of plain LinUCB over a tile of lanes on one core, in turns: with inverses as the engine has
them ("full"), packed ("packed"), packed for the scores and full for the update ("both"), and full
ones as rows of one product with x x^T ("flat"). Nanoseconds per decision, medians, as Markdown.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polar_jax import linalg, manifest

SHAPES = ((15, 16, 1_024), (64, 32, 256))  # adapters, features, rounds
LANES, REPEATS, ALPHA = 32, 7, 0.5
_product = functools.partial(jnp.einsum, precision=linalg.HIGHEST)


class Form(NamedTuple):
    """How inverses are kept."""

    keep: Callable[[Array], Any]  # [N, d, d] -> what is kept
    squared: Callable[[Any, Array], Array]  # x^T A_i x of all, [N]
    chosen: Callable[[Any, Array], Array]  # the matrix of one adapter, [d, d]
    less: Callable[[Any, Array, Array], Any]  # A_a - s s^T


def _layout(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows, columns, position = linalg.packed_layout(size)
    return rows, columns, position, np.where(rows == columns, 1.0, 2.0).astype(np.float32)


def _pack(matrices: Array) -> Array:
    rows, columns, *_ = _layout(matrices.shape[-1])
    return matrices[:, rows, columns]


def _full_squared(kept: Array, x: Array) -> Array:
    return _product("ni,i->n", _product("nij,j->ni", kept, x), x)


def _full_less(kept: Array, adapter: Array, s: Array) -> Array:
    return kept.at[adapter].add(-s[:, None] * s[None, :])


def _packed_squared(kept: Array, x: Array) -> Array:
    rows, columns, _, twice = _layout(x.shape[0])
    return _product("np,p->n", kept, x[rows] * x[columns] * twice)


def _packed_chosen(kept: Array, adapter: Array) -> Array:
    size = int((2 * kept.shape[-1]) ** 0.5)
    return kept[adapter][_layout(size)[2]].reshape(size, size)


def _packed_less(kept: Array, adapter: Array, s: Array) -> Array:
    rows, columns, *_ = _layout(s.shape[0])
    return kept.at[adapter].add(-s[rows] * s[columns])


def _flat_squared(kept: Array, x: Array) -> Array:
    whole = (x[:, None] * x[None, :]).reshape(-1)
    return _product("np,p->n", kept.reshape(len(kept), -1), whole)


FORMS = {
    "full": Form(lambda a: a, _full_squared, lambda kept, a: kept[a], _full_less),
    "packed": Form(_pack, _packed_squared, _packed_chosen, _packed_less),
    "both": Form(
        lambda a: (_pack(a), a),
        lambda kept, x: _packed_squared(kept[0], x),
        lambda kept, a: kept[1][a],
        lambda kept, a, s: (_packed_less(kept[0], a, s), _full_less(kept[1], a, s)),
    ),
    "flat": Form(lambda a: a, _flat_squared, lambda kept, a: kept[a], _full_less),
}


def serve(form: Form, contexts: Array, rewards: Array) -> tuple[Array, Array]:
    """One lane on `[T, d]` contexts and `[T, N]` rewards: `[T]` choices, and a refresh's sums."""
    (rounds, size), adapters = contexts.shape, rewards.shape[1]
    rows, columns, *_ = _layout(size)
    eye = jnp.broadcast_to(jnp.eye(size), (adapters, size, size))
    # No two adapters are equal at first, so that rounding decides little.
    cost = jnp.linspace(0.0, 0.1, adapters)
    recent = jnp.zeros((adapters, rows.size))

    def body(t: Array, carry: Any) -> Any:
        kept, theta, recent, actions = carry
        x = contexts[t]
        width = jnp.sqrt(jnp.maximum(form.squared(kept, x), 0.0))
        a = jnp.argmax(_product("ni,i->n", theta, x) + ALPHA * width - cost)
        v = _product("ij,j->i", form.chosen(kept, a), x)
        growth = 1.0 + _product("i,i->", v, x)
        surprise = rewards[t, a] - _product("i,i->", theta[a], x)
        return (
            form.less(kept, a, v * jax.lax.rsqrt(growth)),
            theta.at[a].add(surprise / growth * v),
            recent.at[a].add(x[rows] * x[columns]),
            actions.at[t].set(a.astype(jnp.int32)),
        )

    start = form.keep(eye), jnp.zeros((adapters, size)), recent, jnp.zeros((rounds,), jnp.int32)
    *_, recent, actions = jax.lax.fori_loop(0, rounds, body, start)
    return actions, recent


def measure(adapters: int, size: int, rounds: int, repeats: int) -> str:
    """One line of the table."""
    rng = np.random.default_rng(0)
    contexts = rng.normal(size=(LANES, rounds, size)) / np.sqrt(size)
    theta = rng.normal(size=(LANES, adapters, size)) / np.sqrt(size)
    given = [
        jnp.asarray(one, jnp.float32)
        for one in (contexts, np.einsum("ltd,lnd->ltn", contexts, theta))
    ]
    calls = {
        name: jax.jit(jax.vmap(functools.partial(serve, form))) for name, form in FORMS.items()
    }
    chosen = {name: np.asarray(call(*given)[0]) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call(*given))
            taken[name].append((time.perf_counter() - began) / (LANES * rounds) * 1e9)
    same = min(float(np.mean(one == chosen["full"])) for one in chosen.values())
    figures = " | ".join(f"{statistics.median(found):,.0f}" for found in taken.values())
    return f"| ({adapters}, {size}) | {figures} | {same:.1%} |"


def main(words: list[str]) -> int:
    """Measures and prints; the exit code."""
    parser = argparse.ArgumentParser(description="Packed statistics in XLA against full ones.")
    parser.add_argument("--small", action="store_true", help="few rounds, one sample")
    options = parser.parse_args(words)
    print(f"jax {jax.__version__}, {manifest.surroundings()['machine']['cpu']}\n")
    print(f"| (N, d) | {' | '.join(FORMS)} | same choices |\n|---{'|---' * (len(FORMS) + 1)}|")
    for adapters, size, rounds in SHAPES:
        few = options.small
        line = measure(adapters, size, 16 if few else rounds, 1 if few else REPEATS)
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
