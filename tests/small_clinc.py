"""A made-up CLINC150 and a made-up encoder: all that the training of adapters needs, in seconds."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sweeps.real_adapters import base_model
from sweeps.real_adapters.encoder import Shape

DOMAINS = (
    *("banking", "credit_cards", "kitchen_and_dining", "home", "auto_and_commute"),
    *("travel", "utility", "work", "small_talk", "meta"),
)
INTENTS = 2  # of every domain
SHAPE = Shape(
    num_hidden_layers=2,
    num_attention_heads=3,
    hidden_size=24,
    intermediate_size=40,
    max_position_embeddings=48,
    vocab_size=97,
    layer_norm_eps=1e-12,
)


class Encoded(NamedTuple):
    """What a tokenizer gives for one prompt."""

    ids: list[int]


class Words:
    """A tokenizer: a word is its number modulo the vocabulary, a first and a last token around."""

    def encode_batch(self, prompts: Sequence[str]) -> list[Encoded]:
        """Token numbers of every prompt."""
        return [Encoded([1, *(int(w[1:]) % 90 + 5 for w in p.split()), 2]) for p in prompts]


def write(folder: pathlib.Path, *, rows: int = 6, seed: int = 0) -> pathlib.Path:
    """Writes the two files of CLINC150, `rows` prompts per intent and split."""
    random = np.random.default_rng(seed)
    tree = {name: [f"{name}_{i}" for i in range(INTENTS)] for name in DOMAINS}
    splits: dict[str, list[list[str]]] = {"oos_test": [["w1 w2", "oos"]]}
    for split in ("train", "val", "test"):
        splits[split] = []
        for number, intent in enumerate(i for intents in tree.values() for i in intents):
            for _ in range(rows):
                # Words of the intent, of its domain, of anybody.
                words = [number, number, 40 + number // INTENTS, *random.integers(60, 90, 1)]
                words += list(random.integers(60, 90, random.integers(0, 5)))
                splits[split].append([" ".join(f"w{word}" for word in words), intent])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_full.json").write_text(json.dumps(splits))
    (folder / "domains.json").write_text(json.dumps(tree))
    return folder


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under PyTorch's names."""
    random = np.random.default_rng(seed)
    width, inner = SHAPE.hidden_size, SHAPE.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (SHAPE.vocab_size, width),
        "embeddings.position_embeddings.weight": (SHAPE.max_position_embeddings, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(SHAPE.num_hidden_layers):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{name}.attention.{part}.weight"] = (width, width)
            shapes[f"{name}.attention.{part}.bias"] = (width,)
        shapes[f"{name}.intermediate.dense.weight"] = (inner, width)
        shapes[f"{name}.intermediate.dense.bias"] = (inner,)
        shapes[f"{name}.output.dense.weight"] = (width, inner)
        shapes[f"{name}.output.dense.bias"] = (width,)
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    made = {
        name: random.standard_normal(shape).astype(np.float32)
        * np.float32(1 / np.sqrt(shape[-1]) if len(shape) == 2 else 0.3)
        for name, shape in shapes.items()
    }
    for name in norms:
        made[f"{name}.weight"] = random.uniform(0.5, 1.5, width).astype(np.float32)
        made[f"{name}.bias"] = random.uniform(-0.2, 0.2, width).astype(np.float32)
    return made


def model(seed: int = 0) -> base_model.BaseModel:
    """A base model with those weights."""
    tree: Any = base_model.to_tree(tensors(seed), SHAPE)
    return base_model.BaseModel(SHAPE, tree, Words(), sha256=f"seed {seed}")
