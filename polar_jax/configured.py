"""What the options of a run mean for the engine: problem, stream, costs, policies."""

import dataclasses

import numpy as np

from polar_jax import config as options
from polar_jax import environments, io, lanes, paging, policies
from polar_jax.config import RunConfig

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
    problem = policies.Problem(config.adapters, config.slots, config.context_dim, config.horizon)
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


def _costs(config: RunConfig) -> tuple[lanes.Costs, str]:
    """The paging costs and where they come from."""
    mean = options.synthetic_mean(config)
    if mean is not None:
        costs = lanes.Costs(price_per_ms=config.price_per_ms, synthetic_mean=mean)
        return costs, f"synthetic, drawn per seed: {mean:g} * U(0.5, 1.5)"
    if config.paging is not None:
        table = io.read_paging_table(config.paging, tier=config.tier)
        held = len(table.adapters)
        if config.adapters > held:
            raise ValueError(
                f"--adapters must be in [1, {held}], as {str(config.paging)!r} holds {held} "
                f"adapters; got {config.adapters}."
            )
        table = paging.take(table, config.adapters)
        origin = f"file {str(config.paging)!r}, {len(table.adapters)} adapters, tier {table.tier}"
    else:
        tier = config.tier or options.MEASURED_TIERS[0]
        table = io.qwen_paging_table(config.adapters, tier=tier)
        origin = f"{_ORIGINS.get(tier, _MEASURED)}, tier {tier}"
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
