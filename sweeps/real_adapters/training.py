"""Training of one adapter, and embeddings under one: all that runs on the device."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from sweeps.real_adapters import adapter, batches, encoder
from sweeps.real_adapters.encoder import Shape
from sweeps.real_adapters.head import Head

EVALUATION_BATCH = 128
_ADAM = optax.scale_by_adam()


class Settings(NamedTuple):
    """What a training run depends on besides data and model; the same for every adapter.

    An equal number of steps is an equal price: the generalist sees each intent ten times less
    often than an expert does.
    """

    steps: int = 80
    batch: int = 32
    learning_rate: float = 3e-3  # Adam's peak: linear rise over a tenth, cosine fall to 0
    shots: int = 3  # examples per intent in the head
    seed: int = 0


class Lesson(NamedTuple):
    """What one adapter learns from."""

    tokens: Sequence[Sequence[int]]  # of every prompt of the training split
    intent: np.ndarray  # [M], of that split
    pool: np.ndarray  # [P], the rows that this adapter sees


def embed(
    shape: Shape, params: Any, tokens: Sequence[Sequence[int]], done: Callable[[int], object]
) -> np.ndarray:
    """Embeddings `[M, E]` of prompts under weights; `done` hears how many each batch was."""
    out = np.zeros((len(tokens), shape.hidden_size), np.float32)
    for batch in batches.in_turn(tokens, EVALUATION_BATCH):
        found = np.asarray(_embed(shape, params, batch.ids, batch.mask))
        out[batch.row] = found[: batch.row.size]
        done(batch.row.size)
    return out


@functools.partial(jax.jit, static_argnums=0)
def _embed(shape: Shape, params: Any, ids: ArrayLike, mask: ArrayLike) -> Array:
    return encoder.embed(shape, params, None, ids, mask)


def train(
    shape: Shape,
    params: Any,
    head: Head,
    lesson: Lesson,
    *,
    rank: int,
    padded: int,
    number: int,
    settings: Settings,
    done: Callable[[int], object],
) -> tuple[dict[str, Any], list[float]]:
    """Trains an adapter on the cross-entropy over all intents, of its own prompts alone.

    The softmax is over all intents, as a language model's is over all words: the adapter becomes
    an expert inside its domain, and drifts outside, where nothing holds it.

    Args:
      shape: of the encoder.
      params: the base model's weights; not changed.
      head: shared by all adapters; not changed.
      lesson: what it learns from.
      rank: of the adapter.
      padded: rank of the arrays, see `adapter.start`.
      number: of the adapter: its random numbers differ from the others'.
      settings: what it depends on besides.
      done: hears after each step how many rows its batch had.

    Returns:
      The collection `lora`, rank `padded`, and the loss of every step, nats.

    Raises:
      FloatingPointError: if a loss is no finite number.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), number)
    lora = adapter.start(key, shape, rank=rank, padded=padded)
    scaling = {name: lora["layers"][name]["scaling"] for name in encoder.TARGETS}
    factors = {
        name: {part: lora["layers"][name][part] for part in ("a", "b")} for name in encoder.TARGETS
    }
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, max(1, settings.steps // 10), settings.steps + 1
    )
    state = _ADAM.init(factors)
    losses = []
    for step, batch in enumerate(_batches(lesson, number, settings)):
        factors, state, loss = _step(
            shape,
            factors,
            state,
            (params, scaling, head.prototypes, jnp.float32(head.scale)),
            batch,
            # At either end of the schedule the rate is 0, and a batch would be lost.
            jnp.float32(rate(step + 1)),
        )
        losses.append(float(loss))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of step {step} is {losses[-1]}: lower the rate.")
        done(settings.batch)
    return _collection(factors, scaling), losses


def _batches(lesson: Lesson, number: int, settings: Settings) -> Iterator[tuple]:
    """Tokens, mask, intents and weights (0 for rows that fill up) of each step."""
    stream = batches.for_training(
        lesson.tokens,
        lesson.pool,
        size=settings.batch,
        steps=settings.steps,
        seed=settings.seed * 1_000 + number,
    )
    for batch in stream:
        intent = np.zeros(settings.batch, np.int32)
        weight = np.zeros(settings.batch, np.float32)
        intent[: batch.row.size], weight[: batch.row.size] = lesson.intent[batch.row], 1
        yield batch.ids, batch.mask, intent, weight


def _collection(factors: Any, scaling: Any) -> dict[str, Any]:
    return {
        "layers": {name: {**factors[name], "scaling": scaling[name]} for name in encoder.TARGETS}
    }


def _loss(shape: Shape, factors: Any, frozen: Any, batch: Any) -> Array:
    """Mean cross-entropy of a batch's prompts, nats."""
    params, scaling, prototypes, scale = frozen
    ids, mask, labels, weight = batch
    found = encoder.embed(shape, params, _collection(factors, scaling), ids, mask)
    logits = scale * jnp.einsum("be,ce->bc", found, prototypes)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses * weight) / jnp.sum(weight)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    shape: Shape, factors: Any, state: Any, frozen: Any, batch: Any, rate: Array
) -> tuple[Any, Any, Array]:
    """One step of Adam on the factors alone."""
    loss, slopes = jax.value_and_grad(_loss, argnums=1)(shape, factors, frozen, batch)
    moves, state = _ADAM.update(slopes, state)
    factors = jax.tree.map(lambda value, move: value - rate * move, factors, moves)
    return factors, state, loss
