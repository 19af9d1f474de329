"""A BERT sentence encoder in float64 NumPy, from the tensors that PyTorch's names give.

Devlin et al. 2018 (post-norm), mean pooling and normalisation as sentence-transformers do.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def _norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(variance + 1e-12)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def sentence_embedding(
    tensors: dict[str, np.ndarray], ids: list[int], *, heads: int, layers: int
) -> np.ndarray:
    """The unit embedding of one prompt, without padding."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = np.stack([w["embeddings.word_embeddings.weight"][token] for token in ids])
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = _norm(x, w, "embeddings.LayerNorm")
    size = x.shape[1] // heads
    for number in range(layers):
        layer = f"encoder.layer.{number}"
        q, k, v = (_linear(x, w, f"{layer}.attention.self.{n}") for n in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = q[:, part] @ k[:, part].T / math.sqrt(size)
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            mixed[:, part] = shares / shares.sum(axis=1, keepdims=True) @ v[:, part]
        x = x + _linear(mixed, w, f"{layer}.attention.output.dense")
        x = _norm(x, w, f"{layer}.attention.output.LayerNorm")
        inner = _linear(x, w, f"{layer}.intermediate.dense")
        inner = inner * (1 + _erf(inner / math.sqrt(2))) / 2
        x = x + _linear(inner, w, f"{layer}.output.dense")
        x = _norm(x, w, f"{layer}.output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)
