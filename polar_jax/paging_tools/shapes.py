"""The tensors of LoRA adapters, by base model, rank and targets, as PEFT names them."""

from typing import NamedTuple

from polar_jax import checks
from polar_jax.io.safetensors import TensorSpec


class BaseModel(NamedTuple):
    """What a base model's linear layers look like, and so its adapters' tensors."""

    name: str  # where PEFT finds it
    layers: int
    modules: dict[str, tuple[int, int]]  # by module within a layer: (inputs, outputs)


def _decoder(name: str, *, hidden: int, layers: int, kv: int, mlp: int) -> BaseModel:
    """A decoder with grouped key and value heads (`kv` wide) and a gated MLP."""
    return BaseModel(
        name,
        layers,
        {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden, kv),
            "self_attn.v_proj": (hidden, kv),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (hidden, mlp),
            "mlp.up_proj": (hidden, mlp),
            "mlp.down_proj": (mlp, hidden),
        },
    )


MODELS = {
    # 28 layers, 28 query and 4 key and value heads of 128.
    "qwen2.5-7b": _decoder("Qwen/Qwen2.5-7B-Instruct", hidden=3_584, layers=28, kv=512, mlp=18_944),
}
TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
MAX_RANK = 1_024


def adapter_tensors(model: str, rank: int, targets: str) -> list[TensorSpec]:
    """The tensors of one adapter, in bfloat16.

    Args:
      model: a key of `MODELS`.
      rank: LoRA rank r, in [1, MAX_RANK].
      targets: a key of `TARGETS`.

    Returns:
      For every target of every layer `lora_A`, `[r, inputs]`, and `lora_B`, `[outputs, r]`.

    Raises:
      ValueError: for an unknown model or targets, or a rank out of range.
    """
    checks.one_of("model", model, MODELS)
    checks.one_of("targets", targets, TARGETS)
    checks.between("rank", rank, 1, MAX_RANK, whole=True)
    base = MODELS[model]
    tensors = []
    for layer in range(base.layers):
        for module, (inputs, outputs) in base.modules.items():
            if module.split(".")[1] in TARGETS[targets]:
                stem = f"base_model.model.model.layers.{layer}.{module}"
                tensors.append(TensorSpec(f"{stem}.lora_A.weight", (rank, inputs)))
                tensors.append(TensorSpec(f"{stem}.lora_B.weight", (outputs, rank)))
    return tensors


def size_bytes(model: str, rank: int, targets: str) -> int:
    """Bytes of one adapter's tensors; arguments as for `adapter_tensors`."""
    return sum(tensor.num_bytes for tensor in adapter_tensors(model, rank, targets))
