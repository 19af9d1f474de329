"""The sentence encoder (BERT, post-norm) in Flax, with LoRA on the queries and the values.

`B` prompts, `S` tokens, `H` width, `L` layers, `r` rank, `E = H` width of an embedding. The
layers are one module scanned over stacked weights: six times less to compile. The base weights
live in the collection `params`, an adapter's in `lora`, so that gradients are taken, and
optimisers kept, for the latter alone.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# Added to the logits of padding: small enough to vanish in any softmax, finite in float32.
MASKED = -1e9
TARGETS = ("query", "value")
# flax declares the argument that takes it as a number.
_SAME_FOR_ALL: Any = nn.broadcast


class Shape(NamedTuple):
    """Sizes of an encoder, under the names of its `config.json`."""

    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    intermediate_size: int
    max_position_embeddings: int
    vocab_size: int
    layer_norm_eps: float


class Linear(nn.Module):
    """`x W + b`, and with `rank > 0` the adapter's `scaling x A B` beside it."""

    features: int
    rank: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., in]` to `[..., features]`."""
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.zeros, (width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum("...i,ij->...j", x, kernel) + jnp.expand_dims(bias, range(x.ndim - 1))
        if self.rank:
            a = self.variable("lora", "a", jnp.zeros, (width, self.rank)).value
            b = self.variable("lora", "b", jnp.zeros, (self.rank, self.features)).value
            scaling = self.variable("lora", "scaling", jnp.zeros, ()).value
            y += scaling * jnp.einsum("...r,rj->...j", jnp.einsum("...i,ir->...r", x, a), b)
        return y


class Norm(nn.Module):
    """Layer normalisation with weight and bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis."""
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        spread = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        first = range(x.ndim - 1)
        normal = centred * jax.lax.rsqrt(spread + self.epsilon)
        return normal * jnp.expand_dims(weight, first) + jnp.expand_dims(bias, first)


class Layer(nn.Module):
    """One layer: attention over the prompt, then two linear maps, each added and normalised."""

    shape: Shape
    rank: int = 0

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, None]:
        """Maps `[B, S, H]` and the mask `[B, S]` to `[B, S, H]`; None is what a scan collects."""
        batch, length, width = x.shape
        heads = (batch, length, self.shape.num_attention_heads, -1)
        query, key, value = (
            Linear(width, self.rank if name in TARGETS else 0, name=name)(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        logits = jnp.where(mask[:, None, None, :], logits, MASKED)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), value)
        epsilon = self.shape.layer_norm_eps
        x += Linear(width, name="attention_output")(mixed.reshape(x.shape))
        x = Norm(epsilon, name="attention_norm")(x)
        inner = Linear(self.shape.intermediate_size, name="intermediate")(x)
        # The exact error function: the weights were trained with it.
        x += Linear(width, name="output")(jax.nn.gelu(inner, approximate=False))
        return Norm(epsilon, name="output_norm")(x), None


class Encoder(nn.Module):
    """Tokens to unit vectors: the mean over the tokens of the last layer, normalised."""

    shape: Shape
    rank: int = 0

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """Maps token numbers `[B, S]` and their mask `[B, S]` to embeddings `[B, E]`."""
        sizes, zeros = self.shape, nn.initializers.zeros
        words = self.param("words", zeros, (sizes.vocab_size, sizes.hidden_size))
        places = self.param("positions", zeros, (sizes.max_position_embeddings, sizes.hidden_size))
        kind = self.param("token_type", zeros, (sizes.hidden_size,))
        x = words[ids] + places[None, : ids.shape[1]] + kind[None, None]
        x = Norm(sizes.layer_norm_eps, name="norm")(x)
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=_SAME_FOR_ALL,
            length=sizes.num_hidden_layers,
        )
        x, _ = layers(sizes, self.rank, name="layers")(x, mask)
        counted = jnp.where(mask[..., None], x, 0.0)
        mean = jnp.sum(counted, axis=1) / jnp.sum(mask, axis=1, keepdims=True).astype(x.dtype)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def embed(shape: Shape, params: Any, lora: Any, ids: ArrayLike, mask: ArrayLike) -> Array:
    """Embeddings `[B, E]` of tokens `[B, S]`, with the adapter `lora` where it is not None."""
    if lora is None:
        return jnp.asarray(Encoder(shape).apply({"params": params}, ids, mask))
    rank = lora["layers"][TARGETS[0]]["a"].shape[-1]
    return jnp.asarray(Encoder(shape, rank).apply({"params": params, "lora": lora}, ids, mask))
