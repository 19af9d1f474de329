"""Synthetic request streams: clustered, isotropic, sticky, drifting, rotating, bernoulli.

Every stream is a pure function of `(key, block)`; see `docs/model.md`, "Environments".
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import checks, draws, processors
from polar_jax.draws import BLOCK, Streams
from polar_jax.linalg import HIGHEST
from polar_jax.types import Environment, Rounds

_SLOPE, _TABLE_SD = 0.4, 0.15  # bernoulli: weight of the linear part, sd of the table


class EnvironmentParams(flax.struct.PyTreeNode):
    """Traced constants of the synthetic streams; each reads those it needs."""

    noise: Array  # [], standard deviation of the reward noise
    zipf: Array  # [], exponent of the clusters' popularity
    spread: Array  # [], sd per coordinate of contexts around their centre
    theta_spread: Array  # [], sd per coordinate of thetas around their centre
    stay: Array  # [], probability that the next request keeps its cluster
    segment_rounds: Array  # [] int32, rounds between two popularity orders
    period: Array  # [] int32, rounds before a rotating stream advances


class Instance(NamedTuple):
    """What is fixed for a seed: `N` adapters, `G` clusters, `d` features, `S` segments."""

    centres: Array  # [G, d] float32, on the unit sphere
    theta: Array  # [N, d] float32, on the unit sphere
    table: Array  # [G, N] float32, deviation from linearity (bernoulli)
    popularity: Array  # [S, G] float32, cumulative probabilities of the clusters
    active: Array  # [N] bool, False for adapters that only fill up a shape
    features: Array  # [d] bool, False for features that only fill up a shape


class _Shape(NamedTuple):
    num_clusters: int
    num_segments: int


def _normalise(vectors: Array) -> Array:
    squared = jnp.einsum("...d,...d->...", vectors, vectors, precision=HIGHEST)
    if processors.code() == processors.PORTABLE:
        # `rsqrt` becomes an instruction that every make of processor approximates in its own way,
        # and so does the quotient, unless a barrier hides the root from the compiler.
        return vectors / jax.lax.optimization_barrier(jnp.sqrt(squared))[..., None]
    return vectors * jax.lax.rsqrt(squared)[..., None]


class _BlockInputs(NamedTuple):
    """What the rounds of one block are drawn from."""

    key: Array
    streams: Streams  # of this block
    params: EnvironmentParams
    instance: Instance
    block: Array


def _independent_clusters(inputs: _BlockInputs) -> Array:
    return draws.independent_clusters(inputs.streams, inputs.instance.popularity[:1])


def _sticky_clusters(inputs: _BlockInputs) -> Array:
    return draws.sticky_clusters(
        inputs.key,
        inputs.block,
        inputs.instance.popularity,
        inputs.params.segment_rounds,
        lambda _: inputs.params.stay,
    )


def _rotating_clusters(inputs: _BlockInputs) -> Array:
    num_clusters = inputs.instance.centres.shape[0]
    pairs = max(1, num_clusters // 2)
    first = 2 * ((draws.block_rounds(inputs.block) // inputs.params.period) % pairs)
    second = draws.block_uniform(inputs.streams.cluster) >= 0.5
    return jnp.minimum(first + second.astype(jnp.int32), num_clusters - 1)


def _no_clusters(inputs: _BlockInputs) -> Array:
    del inputs
    return jnp.zeros((BLOCK,), jnp.int32)


class _Kind(NamedTuple):
    """How one kind of stream differs from the others."""

    clusters: Callable[..., Array]  # cluster of each round of a block
    isotropic: bool = False  # contexts and thetas have no centres
    binary: bool = False  # rewards are 0 or 1
    independent: bool = True  # contexts are independent draws


_KINDS = {
    "clustered": _Kind(_independent_clusters),
    "isotropic": _Kind(_no_clusters, isotropic=True),
    "sticky": _Kind(_sticky_clusters, independent=False),
    "drifting": _Kind(_sticky_clusters, independent=False),
    "rotating": _Kind(_rotating_clusters, independent=False),
    "bernoulli": _Kind(_independent_clusters, binary=True),
}
NAMES = tuple(_KINDS)
DRIFTING_SEGMENTS = 32


def _instance(
    key: Array,
    params: EnvironmentParams,
    *,
    active: Array,
    features: Array,
    shape: _Shape,
    kind: _Kind,
) -> Instance:
    """What is fixed for a seed; `active` `[N]` and `features` `[d]` bool say what is no padding."""
    num_adapters, context_dim = active.shape[0], features.shape[0]
    streams = draws.streams(key)
    num_clusters = shape.num_clusters
    scattered = jnp.where(
        features[None, :], draws.grid_normal(streams.centres, num_clusters, context_dim), 0.0
    )
    centres = _normalise(scattered)
    # Cluster i mod G for each adapter, shuffled: ranks of independent uniforms.
    shuffled = jnp.where(active, draws.indexed_uniform(streams.assignment, num_adapters), 2.0)
    cluster = jnp.argsort(jnp.argsort(shuffled)) % num_clusters
    scatter = jnp.where(
        features[None, :], draws.grid_normal(streams.theta, num_adapters, context_dim), 0.0
    )
    centred = centres[cluster] + params.theta_spread * scatter
    table = jnp.zeros((num_clusters, num_adapters), jnp.float32)
    if kind.binary:
        table = _TABLE_SD * draws.grid_normal(streams.table, num_adapters, num_clusters).T
    return Instance(
        centres=centres,
        theta=_normalise(scatter if kind.isotropic else centred),
        table=table,
        popularity=draws.popularity(
            streams.order,
            params.zipf,
            num_clusters,
            shape.num_segments,
            first_in_order=True,
        ),
        active=active,
        features=features,
    )


def _rounds(
    key: Array,
    params: EnvironmentParams,
    instance: Instance,
    block: Array,
    *,
    kind: _Kind,
) -> Rounds:
    """The `BLOCK` rounds of one block."""
    streams = draws.at_block(key, block)
    cluster = kind.clusters(_BlockInputs(key, streams, params, instance, block))
    # One key per feature and the block's rounds from it: padding features changes none.
    features = draws.keys(streams.context, instance.theta.shape[1])
    scatter = jax.vmap(lambda one: jax.random.normal(one, (BLOCK,), jnp.float32))(features).T
    scatter = jnp.where(instance.features[None, :], scatter, 0.0)
    centre = 0.0 if kind.isotropic else instance.centres[cluster]
    spread = 1.0 if kind.isotropic else params.spread
    context = _normalise(centre + spread * scatter)
    utility = jnp.einsum("td,nd->tn", context, instance.theta, precision=HIGHEST)
    if kind.binary:
        utility = jnp.clip(0.5 + _SLOPE * utility + instance.table[cluster], 0.0, 1.0)
        noise = draws.block_uniform(streams.noise)
    else:
        noise = params.noise * jax.random.normal(streams.noise, (BLOCK,), jnp.float32)
    return Rounds(
        context=context,
        utility=jnp.where(instance.active[None, :], utility, -jnp.inf),
        noise=noise,
        latency_uniform=draws.block_uniform(streams.latency),
        reservoir_slot=draws.reservoir_slots(streams.reservoir, block),
        policy_bits=jax.random.bits(streams.policy, (BLOCK, 2), jnp.uint32),
    )


def environment(
    name: str, *, num_clusters: int = 6, num_segments: int | None = None
) -> Environment:
    """A named request stream.

    Args:
      name: one of `NAMES`.
      num_clusters: `G`, at least 1.
      num_segments: popularity orders of a sticky stream (default 4) or a drifting one
        (default 32); the others have one.

    Returns:
      The environment; arguments that mean the same stream give the same object.

    Raises:
      ValueError: for an unknown name, or counts below 1.
    """
    checks.one_of("environment", name, NAMES)
    checks.at_least("num_clusters", num_clusters, 1)
    segments = {"sticky": 4, "drifting": DRIFTING_SEGMENTS}
    if num_segments is not None and name in segments:
        segments[name] = num_segments
    shape = _Shape(num_clusters, segments.get(name, 1))
    checks.at_least("num_segments", shape.num_segments, 1)
    return _environment(name, shape)


@functools.cache
def _environment(name: str, shape: _Shape) -> Environment:
    kind = _KINDS[name]
    return Environment(
        name=name,
        instance=functools.partial(_instance, shape=shape, kind=kind),
        rounds=functools.partial(_rounds, kind=kind),
        binary_reward=kind.binary,
        independent=kind.independent,
        num_clusters=shape.num_clusters,
        num_segments=shape.num_segments,
    )


def environment_params(
    env: Environment,
    *,
    horizon: int,
    noise: float = 0.1,
    zipf: float = 1.2,
    spread: float = 0.25,
    theta_spread: float = 0.35,
    stay: float = 0.73,
    period: int = 2_000,
) -> EnvironmentParams:
    """Constants of a stream, checked, as arrays.

    Args:
      env: the environment that will read them.
      horizon: `T`; a sticky stream changes its popularity every `T / segments` rounds.
      noise: standard deviation of the reward noise, units of utility, at least 0.
      zipf: exponent of the clusters' popularity, at least 0.
      spread: sd per coordinate of contexts around their cluster's centre, at least 0.
      theta_spread: sd per coordinate of thetas around their cluster's centre, at least 0.
      stay: probability that the next request keeps its cluster, in `[0, 0.9]`.
      period: rounds before a rotating stream advances, at least 1.

    Returns:
      The parameters.

    Raises:
      ValueError: for a value outside its range.
    """
    checks.at_least("horizon", horizon, 1)
    for label, value in (
        ("noise", noise),
        ("zipf", zipf),
        ("spread", spread),
        ("theta_spread", theta_spread),
    ):
        checks.finite_at_least(label, value, 0.0)
    checks.between("stay", stay, 0.0, draws.MAX_STAY)
    checks.at_least("period", period, 1)
    return EnvironmentParams(
        noise=jnp.float32(noise),
        zipf=jnp.float32(zipf),
        spread=jnp.float32(spread),
        theta_spread=jnp.float32(theta_spread),
        stay=jnp.float32(stay),
        segment_rounds=jnp.int32(-(-horizon // env.num_segments)),
        period=jnp.int32(period),
    )
