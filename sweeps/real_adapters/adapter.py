"""A LoRA adapter: its start, its PEFT folder, and what it is when merged into the weights.

PEFT's form: `adapter_config.json`, and `adapter_model.safetensors` with the tensors
`base_model.model.encoder.layer.L.attention.self.{query,value}.lora_{A,B}.weight`, `[r, in]` and
`[out, r]`, float32. With the base model's weights `W [out, in]` the adapted ones are
`W + lora_alpha / r * B A`.
"""

import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sweeps.real_adapters import base_model
from sweeps.real_adapters.encoder import TARGETS, Shape

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# lora_alpha is twice the rank: one scaling for all, so that one learning rate serves all ranks.
SCALING = 2.0


def start(key: jax.Array, shape: Shape, *, rank: int, padded: int) -> dict[str, Any]:
    """An adapter that changes nothing yet: A from PEFT's uniform distribution, B zero.

    Args:
      key: consumed.
      shape: of the encoder.
      rank: `r`, at least 1.
      padded: rank of the arrays, at least `r`. The rows beyond `r` are zero and stay so: the
        gradient of each factor's row is the other's times something. One compiled program then
        serves every rank.

    Returns:
      The collection `lora` of `encoder.Encoder`: per target `a [L, H, padded]`,
      `b [L, padded, H]`, `scaling [L]`.
    """
    layers, width = shape.num_hidden_layers, shape.hidden_size
    # kaiming_uniform_(a=sqrt(5)) of a `[r, in]` matrix.
    bound = 1 / math.sqrt(width)
    keys = dict(zip(TARGETS, jax.random.split(key, len(TARGETS)), strict=True))

    def factors(key: jax.Array) -> dict[str, jax.Array]:
        a = jax.random.uniform(key, (layers, width, rank), minval=-bound, maxval=bound)
        return {
            "a": jnp.pad(a, ((0, 0), (0, 0), (0, padded - rank))),
            "b": jnp.zeros((layers, padded, width)),
            "scaling": jnp.full((layers,), SCALING),
        }

    return {"layers": {name: factors(keys[name]) for name in TARGETS}}


def merge(params: Any, lora: Any) -> Any:
    """The base weights with an adapter added: an encoder as fast as without one."""
    layers = dict(params["layers"])
    for name in TARGETS:
        one = lora["layers"][name]
        change = jnp.einsum("lir,lro->lio", one["a"], one["b"]) * one["scaling"][:, None, None]
        layers[name] = {**layers[name], "kernel": layers[name]["kernel"] + change}
    return {**params, "layers": layers}


def save(folder: pathlib.Path, lora: Any, rank: int) -> None:
    """Writes PEFT's two files into an existing folder."""
    import safetensors.numpy

    tensors = {}
    for name in TARGETS:
        one = {part: np.asarray(lora["layers"][name][part], np.float32) for part in ("a", "b")}
        for layer in range(one["a"].shape[0]):
            prefix = f"base_model.model.encoder.layer.{layer}.attention.self.{name}"
            tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(one["a"][layer, :, :rank].T)
            tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(one["b"][layer, :rank].T)
    config = {
        "base_model_name_or_path": base_model.NAME,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(SCALING * rank),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(TARGETS),
        "task_type": "FEATURE_EXTRACTION",
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    # What PEFT itself writes there; transformers asks for it.
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / WEIGHTS).write_bytes(data)


def load(folder: pathlib.Path, shape: Shape, *, padded: int | None = None) -> dict[str, Any]:
    """Reads a folder that `save` wrote, or PEFT did for the same encoder and targets.

    Args:
      folder: with PEFT's two files.
      shape: of the encoder.
      padded: rank of the arrays, at least the adapter's; None for the adapter's own.

    Returns:
      The collection `lora` of `encoder.Encoder`.

    Raises:
      ValueError: for a damaged one and for another kind, with what it is and what it must be.
      OSError: for a file that is missing.
    """
    import safetensors
    import safetensors.numpy

    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        tensors = safetensors.numpy.load_file(folder / WEIGHTS)
        kind = (config["peft_type"], sorted(config["target_modules"]))
        if kind != ("LORA", sorted(TARGETS)):
            raise ValueError(f"LORA of {', '.join(TARGETS)} is read, got {kind}")
        return _to_tree(config, tensors, shape, padded)
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{str(folder)!r} is no adapter for this encoder: {error!r}.") from None


def _to_tree(
    config: dict[str, Any], tensors: dict[str, np.ndarray], shape: Shape, padded: int | None
) -> dict[str, Any]:
    rank, scaling = config["r"], config["lora_alpha"] / config["r"]
    width = shape.hidden_size

    def stacked(name: str, part: str, wanted: tuple[int, int]) -> np.ndarray:
        names = [
            f"base_model.model.encoder.layer.{layer}.attention.self.{name}.lora_{part}.weight"
            for layer in range(shape.num_hidden_layers)
        ]
        if wrong := [one for one in names if tensors[one].shape != wanted]:
            raise ValueError(f"{wrong[0]} must be {wanted}, got {tensors[wrong[0]].shape}")
        return np.stack([tensors[one].T for one in names])

    more = 0 if padded is None else padded - rank
    layers = {
        name: {
            "a": np.pad(stacked(name, "A", (rank, width)), ((0, 0), (0, 0), (0, more))),
            "b": np.pad(stacked(name, "B", (width, rank)), ((0, 0), (0, more), (0, 0))),
            "scaling": np.full(shape.num_hidden_layers, scaling, np.float32),
        }
        for name in TARGETS
    }
    return {"layers": layers}
