"""What a router sees of a prompt: how likely each domain is, by a classifier of the bare model.

Multinomial logistic regression on the bare model's embeddings, fitted on the validation split's
domains: no label of the test split, and no adapter, is in the features. The strength of the ridge
penalty is chosen by cross-validation within that split.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FOLDS = 5
STEPS, RATE = 400, 0.3


class Classifier(NamedTuple):
    """Domain probabilities `softmax(e W + b)`."""

    weights: np.ndarray  # [E, D] float32
    bias: np.ndarray  # [D] float32
    penalty: float  # the chosen one of `PENALTIES`
    held_out_loss: float  # nats per prompt, cross-validated


def fit(embeddings: np.ndarray, domain: np.ndarray, count: int, *, seed: int) -> Classifier:
    """Fits the classifier.

    Args:
      embeddings: `[n, E]` of the validation split, under the bare model.
      domain: `[n]`, `0..count-1`.
      count: `D`.
      seed: of the folds.

    Returns:
      The classifier with the penalty that predicts held-out folds best, fitted on all `n`.
    """
    x, y = jnp.asarray(embeddings), jnp.asarray(domain, jnp.int32)
    fold = np.random.default_rng(seed).permutation(domain.size) % FOLDS
    # Row `f` of the weights leaves fold `f` out; the last row leaves nothing out.
    kept = jnp.asarray(np.stack([fold != f for f in range(FOLDS)] + [fold >= 0]), jnp.float32)
    penalties = jnp.asarray(PENALTIES, jnp.float32)
    over_folds = jax.vmap(_fit, in_axes=(None, None, 0, None, None))
    over_all = jax.jit(jax.vmap(over_folds, in_axes=(None, None, None, 0, None)), static_argnums=4)
    weights, bias = (np.asarray(part) for part in over_all(x, y, kept, penalties, count))
    losses = [
        np.mean(
            [
                _loss_of(embeddings[fold == f], domain[fold == f], weights[p, f], bias[p, f])
                for f in range(FOLDS)
                if (fold == f).any()
            ]
        )
        for p in range(len(PENALTIES))
    ]
    best = int(np.argmin(losses))
    return Classifier(weights[best, -1], bias[best, -1], PENALTIES[best], float(losses[best]))


def probabilities(classifier: Classifier, embeddings: np.ndarray) -> np.ndarray:
    """Domain probabilities `[n, D]` float32 of embeddings `[n, E]`; rows add up to 1."""
    shown = (embeddings @ classifier.weights + classifier.bias).astype(np.float64)
    shown = np.exp(shown - shown.max(axis=1, keepdims=True))
    return (shown / shown.sum(axis=1, keepdims=True)).astype(np.float32)


def _loss_of(x: np.ndarray, y: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> float:
    found = probabilities(Classifier(weights, bias, 0.0, 0.0), x)
    return float(-np.log(np.maximum(found[np.arange(y.size), y], 1e-30)).mean())


def _fit(x: Array, y: Array, weight: Array, penalty: Array, count: int) -> tuple[Array, Array]:
    """One fit on the rows with weight 1, by Adam on all of them at every step."""

    def loss(parameters: tuple[Array, Array]) -> Array:
        weights, bias = parameters
        logits = jnp.einsum("ne,ed->nd", x, weights) + bias[None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        mean = jnp.sum(losses * weight) / jnp.sum(weight)
        return mean + penalty / 2 * jnp.sum(jnp.square(weights))

    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        parameters, state = carry
        moves, state = optimiser.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, moves), state), None

    start = (jnp.zeros((x.shape[1], count)), jnp.zeros(count))
    (found, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), None, length=STEPS)
    return found
