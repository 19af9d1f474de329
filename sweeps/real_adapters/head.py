"""The head that all adapters and the bare base model share: cosines with class prototypes.

The logit of intent `c` for a prompt is `scale * <e, p_c>`, with `e` the prompt's embedding and
`p_c` the normalised mean embedding, under the bare model, of a few training prompts of the
intent. So the base model answers as a language model with a few examples per class would,
without any training, and an adapter is its PEFT folder and nothing else. Probabilities are the
softmax over all intents.
"""

from typing import NamedTuple

import numpy as np

SCALES = np.arange(2.0, 80.0, 0.5)


class Head(NamedTuple):
    """`C` intents."""

    prototypes: np.ndarray  # [C, E] float32, unit rows
    scale: float  # logits per unit of cosine


def example_rows(intent: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Which training prompts the prototypes are made of.

    Args:
      intent: `[M]` of the training prompts, `0..C-1`, each occurring.
      shots: prompts per intent, at least 1; all of an intent's where it has fewer.
      seed: of the choice.

    Returns:
      Their rows, intent by intent.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for number in range(int(intent.max()) + 1):
        rows = np.flatnonzero(intent == number)
        chosen.append(np.sort(random.permutation(rows)[:shots]))
    return np.concatenate(chosen)


def fit(
    examples: np.ndarray, intent: np.ndarray, held_out: np.ndarray, held_out_intent: np.ndarray
) -> Head:
    """Prototypes from examples, and the scale of `SCALES` that is likeliest on other prompts.

    Args:
      examples: `[m, E]` unit embeddings under the bare model.
      intent: `[m]`, `0..C-1`, each occurring.
      held_out: `[n, E]`, of the validation split.
      held_out_intent: `[n]`.

    Returns:
      The head.
    """
    count = int(intent.max()) + 1
    means = np.stack([examples[intent == number].mean(axis=0) for number in range(count)])
    prototypes = means / np.linalg.norm(means, axis=1, keepdims=True)
    cosines = (held_out @ prototypes.T).astype(np.float64)
    losses = [-log_probability(cosines * scale, held_out_intent).mean() for scale in SCALES]
    return Head(prototypes.astype(np.float32), float(SCALES[int(np.argmin(losses))]))


def logits(head: Head, embeddings: np.ndarray) -> np.ndarray:
    """`[n, C]` float64 logits of embeddings `[n, E]`."""
    return head.scale * (embeddings @ head.prototypes.T).astype(np.float64)


def log_probability(values: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """`[n]` log-probability of the answers `[n]` under logits `[n, C]`."""
    shifted = values - values.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1))
    return shifted[np.arange(answer.size), answer] - total
