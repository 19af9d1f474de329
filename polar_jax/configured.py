"""What the options of a run mean for the engine: problem, stream, costs, policies."""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from polar_jax import config as options
from polar_jax import environments, io, lanes, paging, policies, problems, replay_streams, replays
from polar_jax.config import RunConfig
from polar_jax.types import Environment

UTILITIES = "utilities as measured"

_MEASURED = "measured: Qwen2.5-7B-Instruct LoRA adapters in vLLM 0.8.5 (arXiv:2508.08343)"
_ORIGINS = {
    "remote": (
        "a stress case, not measured here: rebuilt from three published quantiles of "
        "storage-to-GPU loads (P5 1.1 s, P50 4.4 s, P99 8.2 s; Alibaba GenTD26)"
    )
}


@dataclasses.dataclass(frozen=True)
class Configured:
    """Options, read and checked.

    Attributes:
      experiment: what they mean for the engine.
      settings: constants of the policies.
      paging_origin: where the paging costs come from, for people.
      replay: what is replayed, for people and the manifest; empty for a synthetic stream.
    """

    experiment: lanes.Experiment
    settings: policies.Settings
    paging_origin: str
    replay: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def linear_benchmark(self) -> bool:
        """Whether perfect routing knows a linear model's predictions only."""
        return self.replay.get("benchmark", UTILITIES) != UTILITIES


class _Stream(NamedTuple):
    """A stream of requests: the engine's part, and what is said of it."""

    environment: Environment
    params: Any
    sigma: float
    replay: dict[str, Any]


def configure(config: RunConfig) -> Configured:
    """Checks every option and reads the paging table and the replay.

    Args:
      config: the options; sizes beside a replay must be its own.

    Returns:
      What they mean.

    Raises:
      ValueError: for an option or a file that cannot be used.
      OSError: for a file that cannot be read.
    """
    options.check_environment(config)
    if options.is_replay(config.environment):
        config = _sized(config)
    options.check_numbers(config)
    adapters, features = options.sizes(config)
    names = options.policy_names(config, policies.NAMES)
    stream = _replayed(config) if options.is_replay(config.environment) else _synthetic(config)
    settings = policy_settings(config, sigma=stream.sigma)
    costs, origin = _costs(config, adapters)
    problem = _problem(config, adapters, features, costs.table)
    experiment = lanes.Experiment(
        problem=problem,
        environment=stream.environment,
        environment_params=stream.params,
        costs=costs,
        policies=[policies.policy(name, **problem._asdict(), settings=settings) for name in names],
        seeds=range(config.seeds),
        base_seed=config.seed,
    )
    return Configured(experiment, settings, origin, stream.replay)


def _sized(config: RunConfig) -> RunConfig:
    """Options with the replay's sizes; those that a sweep has filled in may be there."""
    own = replay_sizes(config)
    unsized = dataclasses.replace(config, adapters=None, context_dim=None)
    given = config.adapters, config.context_dim
    return options.with_sizes(unsized if given == own else config, own)


def with_own_sizes(config: RunConfig) -> RunConfig:
    """Options as given, with the numbers of adapters and features that they mean.

    A replay has its own; a paging file means all of its adapters where no number is given.

    Raises:
      ValueError: for a file that cannot be used, or a replay's own numbers that are given.
      OSError: for a file that cannot be read.
    """
    if options.is_replay(config.environment):
        return options.with_sizes(config, replay_sizes(config))
    if config.paging is not None and config.adapters is None:
        # What is wrong with other options is told first.
        options.synthetic_mean(config)
        held = len(_paging_table(config).adapters)
        config = dataclasses.replace(config, adapters=held)
    return options.with_sizes(config, None)


def _paging_table(config: RunConfig) -> paging.PagingTable:
    """The table of `--paging`; a file is read once until it changes."""
    path = pathlib.Path(config.paging or "")
    return _read_table(path, config.tier, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_table(path: pathlib.Path, tier: str | None, changed: int) -> paging.PagingTable:
    del changed
    return io.read_paging_table(path, tier=tier)


def replay_sizes(config: RunConfig) -> tuple[int, int]:
    """Adapters and features of the replay that is the environment.

    Raises:
      ValueError: for a file that cannot be used.
      OSError: for a file that cannot be read.
    """
    replay = read_replay(config)
    return replay.utilities.shape[1], replay.contexts.shape[1]


def _synthetic(config: RunConfig) -> _Stream:
    env = environments.environment(
        config.environment, num_clusters=config.clusters, num_segments=config.segments
    )
    params = _stream_params(
        env,
        horizon=config.horizon,
        noise=config.noise,
        zipf=config.zipf,
        spread=config.spread,
        theta_spread=config.theta_spread,
        stay=config.stay,
        period=config.period,
    )
    # Rewards of 0 and 1 are 1/2-sub-Gaussian.
    return _Stream(env, params, 0.5 if env.binary_reward else config.noise, {})


# Seven small arrays on a device: the cells of a sweep that share a stream share them.
_stream_params = functools.lru_cache(maxsize=64)(environments.environment_params)


def read_replay(config: RunConfig) -> replays.Replay:
    """The replay that is the environment; a file is read once until it changes.

    Raises:
      ValueError: for a file that cannot be used.
      OSError: for a file that cannot be read.
    """
    missing: str | float | None = config.missing
    if missing not in (None, "adapter-mean"):
        try:
            missing = float(missing)
        except ValueError:
            raise ValueError(
                f"--missing must be a number or adapter-mean; got {config.missing!r}."
            ) from None
    path = pathlib.Path(config.environment)
    if config.environment == options.REAL:
        return _real(missing)
    # A file that has changed is read again.
    return _read(path, missing, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: pathlib.Path, missing: Any, changed: int) -> replays.Replay:
    del changed
    return io.read_replay(path, missing=missing)


@functools.lru_cache(maxsize=1)
def _real(missing: Any) -> replays.Replay:
    return io.real_adapters(missing=missing)


def _replayed(config: RunConfig) -> _Stream:
    replay = read_replay(config)
    real = config.environment == options.REAL
    # The prompts of the shipped replay came in no order of their own.
    order = config.order or ("sticky" if real else "recorded")
    arrivals = config.arrivals or (options.TRACES[0] if order == "trace" else None)
    gaps = None
    if arrivals is not None:
        shipped = arrivals in options.TRACES
        gaps = io.azure_arrivals(arrivals) if shipped else io.read_arrivals(arrivals)
    env = replay_streams.replay_environment(replay, order=order, num_segments=config.segments)
    params = replay_streams.replay_params(
        env,
        replay,
        horizon=config.horizon,
        zipf=config.zipf,
        stay=config.stay,
        gap_ms=gaps,
        benchmark=config.benchmark,
    )
    low, high = float(replay.utilities.min()), float(replay.utilities.max())
    linear = params.data.benchmark is not None
    described = {
        "source": io.REAL_ORIGIN if real else str(config.environment),
        "digest": replay.digest,
        "requests": len(replay.contexts),
        "domains": list(replay.domain_names),
        "adapters": list(replay.adapters),
        "order": order,
        "arrivals": arrivals,
        "benchmark": "best linear policy in hindsight, cross-fitted" if linear else UTILITIES,
        "largest_norm": replay.largest_norm,
        "missing_filled": replay.missing,
    }
    # Bounded rewards are sub-Gaussian with half their range.
    return _Stream(env, params, (high - low) / 2, described)


def _problem(
    config: RunConfig, adapters: int, features: int, table: paging.PagingTable | None
) -> problems.Problem:
    """The sizes of the problem; adapters' own come from the options or the paging table."""
    slots, capacity = options.num_slots(config), config.capacity_bytes
    if slots is not None or capacity is None:
        kept = options.DEFAULT_SLOTS if slots is None else slots
        return problems.Problem(adapters, kept, features, config.horizon)
    sizes = options.adapter_sizes(config)
    if sizes is None and table is not None and table.size_bytes is not None:
        sizes = tuple(table.size_bytes.tolist())
    if sizes is None:
        name = "1" if table is None else paging.show(table.adapters[0])
        source = "with synthetic costs" if table is None else f"of {config.paging or 'the default'}"
        raise ValueError(
            f"--capacity-bytes needs the size of every adapter, and adapter {name} {source} has "
            "none; give --size-bytes, or a column size_bytes in the file of --paging."
        )
    return problems.sized_problem(sizes, capacity, context_dim=features, horizon=config.horizon)


def _costs(config: RunConfig, adapters: int) -> tuple[lanes.Costs, str]:
    """The paging costs and where they come from."""
    mean = options.synthetic_mean(config)
    if mean is not None:
        costs = lanes.Costs(price_per_ms=config.price_per_ms, synthetic_mean=mean)
        return costs, f"synthetic, drawn per seed: {mean:g} * U(0.5, 1.5)"
    if config.paging is not None:
        table = _paging_table(config)
        held = len(table.adapters)
        if adapters > held:
            raise ValueError(
                f"--adapters must be in [1, {held}], as {str(config.paging)!r} holds {held} "
                f"adapters; got {adapters}."
            )
        table = paging.take(table, adapters)
        origin = f"file {str(config.paging)!r}, {len(table.adapters)} adapters, tier {table.tier}"
    else:
        tier = config.tier or options.MEASURED_TIERS[0]
        table = io.qwen_paging_table(adapters, tier=tier)
        origin = f"{_ORIGINS.get(tier, _MEASURED)}, tier {tier}"
    worst = float(np.max(paging.paging_cost(table, config.price_per_ms)))
    if worst > options.MAX_COST:
        raise ValueError(
            f"--price-per-ms must keep every cost of a page-in at {options.MAX_COST:g} or below, "
            f"got {config.price_per_ms:g}, which makes one {worst:g}."
        )
    return lanes.Costs(price_per_ms=config.price_per_ms, table=table), origin


def policy_settings(config: RunConfig, *, sigma: float) -> policies.Settings:
    """Constants of the policies.

    Args:
      config: the options.
      sigma: sub-Gaussian constant of the rewards' noise.
    """
    return policies.Settings(
        alpha=config.alpha,
        ridge=config.ridge,
        beta=config.beta,
        # Measured utilities need not be about 0 on average, as those of synthetic streams are.
        prior=config.prior or ("pooled" if options.is_replay(config.environment) else "zero"),
        sigma=sigma,
        epoch_length=config.epoch_length,
        window=config.window,
        switching_term=config.switching_term,
    )
