"""Streams of a replay's requests: as recorded, shuffled, by domain, or re-timed by a trace.

Pure functions of `(key, block)` like the synthetic streams; see `docs/replays.md`. The data is
shared by all lanes: `split` takes it out of the parameters, `joined` puts it back.
"""

import functools
import hashlib
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from polar_jax import checks, draws
from polar_jax.replays import Replay, cross_fitted
from polar_jax.types import Environment, Rounds

ORDERS = ("recorded", "shuffled", "independent", "sticky", "drifting", "trace")
BENCHMARKS = ("auto", "utilities", "linear")
# Popularity orders over the horizon unless said otherwise, as for synthetic streams.
SEGMENTS = {"sticky": 4, "drifting": 32, "trace": 4}
# Gaps below this many milliseconds are ties of a trace's clock.
_LEAST_GAP_MS = 1e-3


class ReplayData(flax.struct.PyTreeNode):
    """A replay on the devices, shared by all lanes; `M` requests, `G` domains, `A` gaps."""

    context: Array | np.ndarray  # [M, d] float32
    utility: Array | np.ndarray  # [M, N] float32
    benchmark: Array | np.ndarray | None  # [M, N] float32, what a linear policy expects
    deck: Array | np.ndarray  # [M] int32, requests domain by domain
    deck_start: Array | np.ndarray  # [G] int32, where each domain's begin
    deck_size: Array | np.ndarray  # [G] int32
    order: Array | np.ndarray  # [L] int32
    domain: Array | np.ndarray  # [L] int32, domains of the requests in order
    occurrence: Array | np.ndarray  # [L] int32, earlier requests of the domain in order
    gap_ms: Array | np.ndarray | None  # [A] float32, from each arrival to the one before


class ReplayParams(flax.struct.PyTreeNode):
    """Traced constants of a replay's stream; `data` is shared by all lanes of a call."""

    zipf: Array  # [], exponent of the domains' popularity
    stay: Array  # [], probability that the next request keeps its domain
    persistence_ms: Array  # [], trace: time in which a domain is kept with chance 1/e
    segment_rounds: Array  # [] int32, rounds between two popularity orders
    data: Any  # ReplayData
    # Of the data: equal digests, equal data. No part of what is compiled.
    digest: str = flax.struct.field(pytree_node=False, default="")


class ReplayInstance(NamedTuple):
    """What is fixed for a seed."""

    popularity: Array  # [S, G] float32, cumulative probabilities of the domains
    first: Array  # [] int32, where in the recorded order the run starts
    first_gap: Array  # [] int32, where in the trace
    words: Array  # [2] uint32, seeds of the decks' shuffles
    active: Array  # [N] bool


class _Kind(NamedTuple):
    """What a replay's programs are compiled for."""

    order: str
    num_segments: int


def _instance(
    key: Array, params: ReplayParams, *, active: Array, features: Array, kind: _Kind
) -> ReplayInstance:
    del features  # Padded features of a context are 0.
    drawn = draws.streams(key)
    data = params.data
    gaps = 1 if data.gap_ms is None else data.gap_ms.shape[0]
    return ReplayInstance(
        # Adapters keep their place, so that which domains are popular is what a seed draws.
        popularity=draws.popularity(
            drawn.order,
            params.zipf,
            data.deck_start.shape[0],
            kind.num_segments,
            first_in_order=False,
        ),
        first=jax.random.randint(drawn.assignment, (), 0, data.order.shape[0], jnp.int32),
        first_gap=jax.random.randint(drawn.table, (), 0, gaps, jnp.int32),
        words=jax.random.bits(drawn.centres, (2,), jnp.uint32),
        active=active,
    )


def _gaps(params: ReplayParams, instance: ReplayInstance, rounds: Array) -> Array:
    """`[n]` milliseconds from the arrival before to each round's."""
    gap_ms = params.data.gap_ms
    length = gap_ms.shape[0]
    return gap_ms[(instance.first_gap + rounds % length) % length]


def _dealt(data: ReplayData, instance: ReplayInstance, domain: Array, position: Array) -> Array:
    """Requests at `[n]` positions of their domains' decks, which go round and round."""
    size = data.deck_size[domain]
    card = draws.shuffled(position % size, size, position // size, domain, instance.words)
    return data.deck[data.deck_start[domain] + card]


def _recorded(data: ReplayData, instance: ReplayInstance, rounds: Array) -> Array:
    """The order as it was, from a drawn start; later passes keep the order of the domains."""
    length = data.order.shape[0]
    place = (instance.first + rounds % length) % length
    domain, pass_ = data.domain[place], rounds // length
    size = data.deck_size[domain]
    card = draws.shuffled(data.occurrence[place] % size, size, pass_, domain, instance.words)
    return jnp.where(pass_ == 0, data.order[place], data.deck[data.deck_start[domain] + card])


def _requests(
    key: Array, params: ReplayParams, instance: ReplayInstance, block: Array, kind: _Kind
) -> Array:
    """`[BLOCK]` which requests come in a block."""
    data, rounds = params.data, draws.block_rounds(block)
    if kind.order == "recorded":
        return _recorded(data, instance, rounds)
    if kind.order == "shuffled":
        size = jnp.full_like(rounds, data.deck.shape[0])
        whole = jnp.zeros_like(rounds)
        card = draws.shuffled(rounds % size, size, rounds // size, whole, instance.words)
        return data.deck[card]
    if kind.order == "independent":
        drawn = draws.at_block(key, block)
        domain = draws.independent_clusters(drawn, instance.popularity[:1])
    else:

        def stay(rounds: Array) -> Array:
            if kind.order != "trace":
                return params.stay
            gap = jnp.maximum(_gaps(params, instance, rounds), _LEAST_GAP_MS)
            return jnp.minimum(jnp.exp(-gap / params.persistence_ms), draws.MAX_STAY)

        domain = draws.sticky_clusters(key, block, instance.popularity, params.segment_rounds, stay)
    # Every deck is turned by every request, whoever is served: no count has to be kept.
    return _dealt(data, instance, domain, rounds)


def _rounds(
    key: Array, params: ReplayParams, instance: ReplayInstance, block: Array, *, kind: _Kind
) -> Rounds:
    """The rounds of one block."""
    data, drawn = params.data, draws.at_block(key, block)
    request = _requests(key, params, instance, block, kind)
    benchmark = gap = None
    if data.benchmark is not None:
        benchmark = data.benchmark[request]
    if data.gap_ms is not None:
        gap = _gaps(params, instance, draws.block_rounds(block))
    return Rounds(
        context=data.context[request],
        utility=data.utility[request],
        noise=jnp.zeros((draws.BLOCK,), jnp.float32),
        latency_uniform=draws.block_uniform(drawn.latency),
        reservoir_slot=draws.reservoir_slots(drawn.reservoir, block),
        policy_bits=jax.random.bits(drawn.policy, (draws.BLOCK, 2), jnp.uint32),
        benchmark=benchmark,
        arrival_gap=gap,
    )


def replay_environment(
    replay: Replay, *, order: str = "recorded", num_segments: int | None = None
) -> Environment:
    """The stream of a replay's requests in some order.

    Args:
      replay: the requests.
      order: "recorded": as they came, from a drawn start. "shuffled": all of them, in a drawn
        order. "independent": a domain by popularity (`rank^-zipf`), anew for every request.
        "sticky", "drifting": the next request stays in its domain with probability `stay`,
        and popularity is redrawn at every segment. "trace": likewise, but it stays with
        probability `exp(-gap / persistence)`, gaps being a trace's.
      num_segments: popularity orders over the horizon; 4 for sticky and trace, 32 for
        drifting, where None. The others have one.

    Returns:
      The environment; equal arguments give equal ones.

    Raises:
      ValueError: for an unknown order or less than one segment.
    """
    checks.one_of("order", order, ORDERS)
    segments = SEGMENTS.get(order, 1)
    if num_segments is not None and order in SEGMENTS:
        segments = num_segments
    checks.at_least("num_segments", segments, 1)
    domains = len(np.unique(replay.domains[replay.order]))
    return _environment(_Kind(order, segments), domains, replay.digest)


@functools.cache
def _environment(kind: _Kind, num_domains: int, digest: str) -> Environment:
    return Environment(
        name=f"replay-{kind.order}",
        instance=functools.partial(_instance, kind=kind),
        rounds=functools.partial(_rounds, kind=kind),
        binary_reward=False,
        # C* is chosen in hindsight, on the run's own requests.
        independent=False,
        num_clusters=num_domains,
        num_segments=kind.num_segments,
        source=digest,
    )


def replay_params(
    env: Environment,
    replay: Replay,
    *,
    horizon: int,
    zipf: float = 1.2,
    stay: float = 0.73,
    gap_ms: ArrayLike | None = None,
    benchmark: str = "auto",
) -> ReplayParams:
    """Constants and data of a replay's stream.

    Args:
      env: from `replay_environment`, of the same replay.
      replay: the requests.
      horizon: `T`.
      zipf: exponent of the domains' popularity, at least 0; 0 makes them alike.
      stay: probability that the next request keeps its domain, in `[0, 0.9]`; with order
        "trace" its mean over the trace, at most what capping each at 0.9 leaves.
      gap_ms: `[A]` times between arrivals, milliseconds, at least 0, gone round for longer
        horizons from a start drawn per seed; the stream then has arrival times.
      benchmark: what perfect routing knows: "utilities", the measured ones; "linear", what the
        best linear policy in hindsight expects (for single 0/1 outcomes, where the best of
        the realised ones was merely lucky); "auto", "linear" where every utility is 0 or 1.

    Raises:
      ValueError: for a value outside its range, or a trace order without `gap_ms`.
    """
    if env.source != replay.digest:
        raise ValueError("env must be made of the same replay, got one of another.")
    checks.at_least("horizon", horizon, 1)
    checks.finite_at_least("zipf", zipf, 0.0)
    checks.between("stay", stay, 0.0, draws.MAX_STAY)
    checks.one_of("benchmark", benchmark, BENCHMARKS)
    gaps = None if gap_ms is None else _checked_gaps(gap_ms)
    persistence = 1.0
    if env.name == "replay-trace":
        if gaps is None:
            raise ValueError('order "trace" needs the times between arrivals, gap_ms; got none.')
        persistence = _persistence(gaps, stay)
    linear = benchmark == "linear" or (benchmark == "auto" and replay.binary)
    return ReplayParams(
        zipf=jnp.float32(zipf),
        stay=jnp.float32(stay),
        persistence_ms=jnp.float32(persistence),
        segment_rounds=jnp.int32(-(-horizon // env.num_segments)),
        data=_data(replay, gaps, linear=linear),
        digest=_digest(replay, gaps, linear=linear),
    )


def _digest(replay: Replay, gaps: np.ndarray | None, *, linear: bool) -> str:
    times = b"" if gaps is None else gaps.tobytes()
    return hashlib.sha256(f"{replay.digest} {linear} ".encode() + times).hexdigest()


def _checked_gaps(gap_ms: ArrayLike) -> np.ndarray:
    gaps = np.asarray(gap_ms)
    if gaps.ndim != 1 or not gaps.size or gaps.dtype.kind not in "fiu":
        raise ValueError(
            f"gap_ms must be one or more numbers of ms, got {gaps.dtype} of shape {gaps.shape}."
        )
    wrong = np.flatnonzero(~((gaps >= 0) & (gaps <= 1e12)))
    if wrong.size:
        first = int(wrong[0])
        raise ValueError(f"gap_ms[{first}] must be in [0, 1e12], got {gaps[first]:g}.")
    return gaps.astype(np.float32)


def _persistence(gaps: np.ndarray, stay: float) -> float:
    """Milliseconds tau with mean over gaps of `min(0.9, exp(-gap / tau))` equal to `stay`."""
    floored = np.maximum(gaps.astype(np.float64), _LEAST_GAP_MS)

    def mean(tau: float) -> float:
        return float(np.minimum(np.exp(-floored / tau), draws.MAX_STAY).mean())

    low, high = 1e-6, 1e18
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if mean(middle) < stay else (low, middle)
    return high


def _data(replay: Replay, gaps: np.ndarray | None, *, linear: bool) -> ReplayData:
    # Requests that the record leaves out are in no deck.
    used = np.unique(replay.order)
    deck = used[np.argsort(replay.domains[used], kind="stable")].astype(np.int32)
    labels, domains = np.unique(replay.domains[used], return_inverse=True)
    size = np.bincount(domains).astype(np.int32)
    domain = np.searchsorted(labels, replay.domains[replay.order])
    by_domain = np.argsort(domain, kind="stable")
    begins = np.searchsorted(domain[by_domain], np.arange(len(size)))
    occurrence = np.empty(len(domain), np.int32)
    occurrence[by_domain] = np.arange(len(domain)) - begins[domain[by_domain]]
    return ReplayData(
        context=replay.contexts,
        utility=replay.utilities,
        benchmark=cross_fitted(replay.contexts, replay.utilities) if linear else None,
        deck=deck,
        deck_start=(np.cumsum(size) - size).astype(np.int32),
        deck_size=size,
        order=replay.order,
        domain=domain.astype(np.int32),
        occurrence=occurrence,
        gap_ms=gaps,
    )


def split(params: Any, num_adapters: int, context_dim: int) -> tuple[Any, Any]:
    """A stream's constants, which lanes have each their own, and the data that they share.

    Args:
      params: of a replay or a synthetic stream.
      num_adapters: adapters to pad the data to.
      context_dim: features to pad it to.

    Returns:
      `(params without data, data)`; `()` for data where there is none.
    """
    if not isinstance(params, ReplayParams):
        return params, ()
    data = params.data
    features = ((0, 0), (0, context_dim - data.context.shape[1]))
    adapters = ((0, 0), (0, num_adapters - data.utility.shape[1]))

    def widened(values: Any) -> np.ndarray:
        return np.pad(np.asarray(values), adapters, constant_values=-np.inf)

    padded = data.replace(
        context=np.pad(np.asarray(data.context), features),
        utility=widened(data.utility),
        benchmark=None if data.benchmark is None else widened(data.benchmark),
    )
    return params.replace(data=(), digest=""), padded


def is_linear(params: Any) -> bool:
    """Whether perfect routing knows what a linear model expects, not the utilities."""
    return isinstance(params, ReplayParams) and params.data.benchmark is not None


def fingerprint(params: Any) -> str:
    """What tells a stream's data from others'; "" where it has none."""
    return params.digest if isinstance(params, ReplayParams) else ""


def joined(params: Any, data: Any) -> Any:
    """What `split` took apart."""
    return params.replace(data=data) if isinstance(data, ReplayData) else params


def check_sizes(params: Any, num_adapters: int, context_dim: int) -> None:
    """Raises where a problem has other sizes than the replay that it is run on.

    Raises:
      ValueError: names both.
    """
    if isinstance(params, ReplayParams):
        held = params.data.utility.shape[1], params.data.context.shape[1]
        if held != (num_adapters, context_dim):
            raise ValueError(
                f"the problem must have the replay's {held[0]} adapters and {held[1]} features, "
                f"got {num_adapters} and {context_dim}."
            )
