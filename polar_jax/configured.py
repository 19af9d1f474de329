"""What the options of a run mean for the engine: problem, stream, costs, policies."""

import dataclasses

import numpy as np

from polar_jax import config as options
from polar_jax import environments, io, lanes, paging, policies, problems
from polar_jax.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Configured:
    """Options, read and checked.

    Attributes:
      experiment: what they mean for the engine.
      settings: constants of the policies.
      paging_origin: where the paging costs come from, for people.
    """

    experiment: lanes.Experiment
    settings: policies.Settings
    paging_origin: str


def configure(config: RunConfig) -> Configured:
    """Checks every option and reads the paging table.

    Args:
      config: the options.

    Returns:
      What they mean.

    Raises:
      ValueError: for an option or a file that cannot be used.
      OSError: for a file that cannot be read.
    """
    options.check_numbers(config)
    names = options.policy_names(config, policies.NAMES)
    env = environments.environment(
        config.environment, num_clusters=config.clusters, num_segments=config.segments
    )
    settings = policy_settings(config, binary_reward=env.binary_reward)
    params = environments.environment_params(
        env,
        horizon=config.horizon,
        noise=config.noise,
        zipf=config.zipf,
        spread=config.spread,
        theta_spread=config.theta_spread,
        stay=config.stay,
        period=config.period,
    )
    costs, origin = _costs(config)
    problem = _problem(config, costs.table)
    experiment = lanes.Experiment(
        problem=problem,
        environment=env,
        environment_params=params,
        costs=costs,
        policies=[policies.policy(name, **problem._asdict(), settings=settings) for name in names],
        seeds=range(config.seeds),
        base_seed=config.seed,
    )
    return Configured(experiment, settings, origin)


def _problem(config: RunConfig, table: paging.PagingTable | None) -> problems.Problem:
    """The sizes of the problem; adapters' own come from the options or the paging table."""
    slots, capacity = options.num_slots(config), config.capacity_bytes
    if slots is not None or capacity is None:
        kept = options.DEFAULT_SLOTS if slots is None else slots
        return problems.Problem(config.adapters, kept, config.context_dim, config.horizon)
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
    return problems.sized_problem(
        sizes, capacity, context_dim=config.context_dim, horizon=config.horizon
    )


def _costs(config: RunConfig) -> tuple[lanes.Costs, str]:
    """The paging costs and where they come from."""
    mean = options.synthetic_mean(config)
    if mean is not None:
        costs = lanes.Costs(price_per_ms=config.price_per_ms, synthetic_mean=mean)
        return costs, f"synthetic, drawn per seed: {mean:g} * U(0.5, 1.5)"
    if config.paging is not None:
        table = io.read_paging_table(config.paging)
        held = len(table.adapters)
        if config.adapters > held:
            raise ValueError(
                f"--adapters must be in [1, {held}], as {str(config.paging)!r} holds {held} "
                f"adapters; got {config.adapters}."
            )
        table = paging.take(table, config.adapters)
        origin = f"file {str(config.paging)!r}, {len(table.adapters)} adapters"
    else:
        table = io.qwen_paging_table(config.adapters)
        origin = "measured: Qwen2.5-7B-Instruct LoRA adapters in vLLM 0.8.5 (arXiv:2508.08343)"
    worst = float(np.max(paging.paging_cost(table, config.price_per_ms)))
    if worst > options.MAX_COST:
        raise ValueError(
            f"--price-per-ms must keep every cost of a page-in at {options.MAX_COST:g} or below, "
            f"got {config.price_per_ms:g}, which makes one {worst:g}."
        )
    return lanes.Costs(price_per_ms=config.price_per_ms, table=table), origin


def policy_settings(config: RunConfig, *, binary_reward: bool) -> policies.Settings:
    """Constants of the policies.

    Args:
      config: the options.
      binary_reward: whether rewards are 0 or 1, and so 1/2-sub-Gaussian.
    """
    return policies.Settings(
        alpha=config.alpha,
        ridge=config.ridge,
        beta=config.beta,
        sigma=0.5 if binary_reward else config.noise,
        epoch_length=config.epoch_length,
        window=config.window,
        switching_term=config.switching_term,
    )
