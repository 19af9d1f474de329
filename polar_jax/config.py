"""The options of `polar-jax run` and their ranges. Does not load JAX."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from polar_jax import bytesizes, checks

DEFAULT_POLICIES = (
    "polar",
    "polar_plus",
    "polar_experts",
    "lru",
    "lfu",
    "static",
    "no_cache",
    "oracle_cache",
    "cost_blind",
)
# Every policy, environment and width there is, and the longest stay: what a sweep's file is
# checked against before JAX has loaded. Tests compare them with the engine's.
POLICIES = (
    "polar",
    "polar_plus",
    "polar_admit",
    "polar_experts",
    "lru",
    "lfu",
    "gdsf",
    "landlord",
    "arc",
    "lecar",
    "fastlibra",
    "polar_oexp",
    "static",
    "no_cache",
    "full_cache",
    "oracle_cache",
    "oracle",
    "cost_blind",
    "no_forced",
    "polar_plus_no_forced",
    "epsilon_greedy",
    "lin_ts",
    "random",
)
ENVIRONMENTS = ("clustered", "isotropic", "sticky", "drifting", "rotating", "bernoulli")
BETAS = ("constant", "theory")
MAX_STAY = 0.9
MEASURED_COSTS = "qwen2.5-7b"
DEFAULT_SLOTS = 4
# Beyond these, float32 sums of utilities of size 1 stop meaning anything.
MAX_COST = 1e6
MAX_CONSTANT = 1e6
MAX_DEVICES = 4_096
# Their list is held in memory, and a run of more would take months.
MAX_EPOCHS = 10**7
_SYNTHETIC = "synthetic:"


def _arg(metavar: str, default: str) -> object:
    """How an option whose default is worked out later shows in the help."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def _bytes() -> object:
    """How a number of bytes is read and shown."""
    return tyro.constructors.PrimitiveConstructorSpec[int | None](
        nargs=1,
        metavar="BYTES",
        instance_from_str=lambda words: bytesizes.parse("the number", words[0], least=0),
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Run caching and routing policies on one stream of requests and report who wins.

    Every policy serves the same requests. Utilities are in [-1, 1] (in [0, 1] for
    bernoulli) and have no unit; costs are in units of utility.

    Attributes:
      adapters: LoRA adapters in the library (N), at least 1.
      slots: adapters that fit in fast memory (K), in [0, N].
      capacity_bytes: fast memory in bytes, in place of --slots: 200e6, 200MB or 64MiB. Adapters
        then have the sizes of --size-bytes, or of the column size_bytes of --paging.
      size_bytes: the size of each adapter in bytes, separated by commas, as 8MiB,16MiB,32MiB.
      context_dim: features of a request's context (d), at least 1.
      horizon: requests per simulation (T), at least 1.
      seeds: simulations per policy, each on a stream of its own, at least 1; intervals
        need 2 or more.
      seed: base of all random numbers, a whole number in [0, 2^31 - 1].
      policies: policies to run, separated by commas or spaces, or "all". There are polar,
        polar_plus, polar_admit, polar_experts, polar_oexp, lru, lfu, gdsf, landlord, arc,
        lecar, fastlibra, static, no_cache, full_cache, oracle_cache, oracle, cost_blind,
        no_forced, polar_plus_no_forced, epsilon_greedy, lin_ts and random.
      environment: stream of requests: clustered, isotropic, sticky, drifting, rotating or
        bernoulli.
      clusters: clusters of contexts, at least 1.
      zipf: exponent of the clusters' popularity, at least 0; at 0 all are alike.
      spread: standard deviation per coordinate of contexts around their cluster's centre,
        at least 0; centres have length 1.
      theta_spread: standard deviation per coordinate of adapters around their cluster's
        centre, at least 0.
      stay: probability that the next request keeps its cluster, in [0, 0.9] (sticky,
        drifting).
      segments: orders of popularity over the horizon, in [1, T] (sticky, drifting).
      period: requests before the popular pair of clusters moves on, at least 1 (rotating).
      costs: paging costs: "qwen2.5-7b", load times of LoRA adapters measured in vLLM and
        shipped with the package, or "synthetic:MEAN", drawn per seed as MEAN * U(0.5, 1.5)
        units of utility.
      paging: CSV, JSON or Parquet file of measured load times, in place of --costs, with
        columns adapter and ms. Adapters are taken in the order of the file.
      price_per_ms: utility lost per millisecond of latency, at least 0 (1e-9 with synthetic
        costs, where it turns costs into milliseconds).
      alpha: confidence factor of the router, units of utility, at least 0.
      ridge: regularisation of the router's regressions, in [1e-6, 1e6].
      noise: standard deviation of the reward noise, units of utility, at least 0; also the
        sigma of --beta theory. Not read by bernoulli, whose rewards are 0 or 1 (sigma 0.5).
      epoch_length: requests between two replans of polar, at least 1.
      window: latest contexts that a replan of polar and polar_plus is made on, in [1, 65536];
        a set chosen on few of them stays a little wrong for ever.
      switching_term: whether polar and polar_plus count the cost of loads when they replan.
      beta: confidence widths, constant (alpha) or theory (the proven schedule).
      out: folder for the results.
      overwrite: replace results that --out already holds.
      devices: devices to use, at least 1; no result depends on it.
      quiet: print nothing but errors.
    """

    adapters: int = 15
    slots: Annotated[int | None, _arg("INT", "4 without --capacity-bytes")] = None
    capacity_bytes: Annotated[int | None, _bytes(), _arg("BYTES", "none: slots")] = None
    size_bytes: Annotated[str | None, _arg("BYTES,...", "those of --paging")] = None
    context_dim: int = 8
    horizon: int = 20_000
    seeds: int = 64
    seed: int = 0
    policies: tuple[str, ...] = DEFAULT_POLICIES
    environment: str = "clustered"
    clusters: int = 6
    zipf: float = 1.2
    spread: float = 0.25
    theta_spread: float = 0.35
    stay: float = 0.73
    segments: Annotated[int | None, _arg("INT", "4 for sticky, 32 for drifting")] = None
    period: int = 2_000
    costs: Annotated[str | None, _arg("STR", f"{MEASURED_COSTS} without --paging")] = None
    paging: Annotated[pathlib.Path | None, _arg("FILE", "none")] = None
    price_per_ms: float = 0.0154
    alpha: float = 0.5
    ridge: float = 1.0
    noise: float = 0.1
    epoch_length: Annotated[int | None, _arg("INT", "square root of T, rounded up")] = None
    window: int = 512
    switching_term: bool = True
    beta: str = "constant"
    out: Annotated[pathlib.Path | None, _arg("DIR", "next free of results/run-001, ...")] = None
    overwrite: bool = False
    devices: Annotated[int | None, _arg("INT", "every core, or every accelerator")] = None
    quiet: bool = False


def policy_names(config: RunConfig, known: tuple[str, ...]) -> tuple[str, ...]:
    """The policies asked for, commas split and `all` expanded.

    Args:
      config: the options.
      known: every policy there is.

    Returns:
      Distinct known names.

    Raises:
      ValueError: for an unknown, repeated or missing name.
    """
    names = tuple(name for entry in config.policies for name in entry.replace(",", " ").split())
    if names == ("all",):
        return known
    if not names:
        raise ValueError(f"--policies must name one or more of {', '.join(known)}; got none.")
    for name in names:
        checks.one_of("--policies", name, (*known, "all") if len(names) == 1 else known)
    checks.distinct("--policies", names)
    return names


def synthetic_mean(config: RunConfig) -> float | None:
    """Mean of the synthetic costs, or None where costs are measured.

    Raises:
      ValueError: for costs that are not understood, or given twice.
    """
    if config.costs is not None and config.paging is not None:
        raise ValueError(
            f"--costs and --paging exclude each other, got --costs {config.costs!r} and "
            f"--paging {str(config.paging)!r}."
        )
    if config.costs is None or config.costs == MEASURED_COSTS:
        return None
    allowed = f'"{MEASURED_COSTS}" or "synthetic:MEAN" with MEAN a number in [0, {MAX_COST:g}]'
    text = config.costs.removeprefix(_SYNTHETIC)
    try:
        mean = float(text)
    except ValueError:
        mean = float("nan")
    if not config.costs.startswith(_SYNTHETIC) or not 0.0 <= mean <= MAX_COST:
        raise ValueError(f"--costs must be {allowed}; got {config.costs!r}.")
    return mean


def num_slots(config: RunConfig) -> int | None:
    """`K`, or None where a capacity in bytes stands in its place."""
    if config.capacity_bytes is not None:
        return None
    return DEFAULT_SLOTS if config.slots is None else config.slots


def adapter_sizes(config: RunConfig) -> tuple[int, ...] | None:
    """The sizes of `--size-bytes`, in bytes, or None where there are none.

    Raises:
      ValueError: for sizes that cannot be read, that nothing limits, or that are not one per
        adapter.
    """
    if config.size_bytes is None:
        return None
    if config.capacity_bytes is None:
        raise ValueError(
            f"--size-bytes needs --capacity-bytes, got --size-bytes {config.size_bytes!r} alone."
        )
    words = config.size_bytes.split(",")
    if len(words) != config.adapters:
        lacking = f"; adapter {len(words) + 1} has none" if len(words) < config.adapters else ""
        raise ValueError(
            f"--size-bytes must hold the size of each of {config.adapters} adapters, got "
            f"{len(words)}{lacking}."
        )
    return tuple(
        bytesizes.parse(f"--size-bytes of adapter {i}", word, least=1)
        for i, word in enumerate(words, 1)
    )


def _check_memory(config: RunConfig) -> None:
    if config.slots is not None and config.capacity_bytes is not None:
        raise ValueError(
            f"--slots and --capacity-bytes exclude each other, got --slots {config.slots} and "
            f"--capacity-bytes {config.capacity_bytes}."
        )
    slots = num_slots(config)
    if slots is not None and not 0 <= slots <= config.adapters:
        raise ValueError(
            f"--slots must be a whole number in [0, {config.adapters}], the number of "
            f"adapters; got {slots}."
        )
    if config.capacity_bytes is not None:
        checks.between("--capacity-bytes", config.capacity_bytes, 0, checks.MAX_BYTES, whole=True)
    adapter_sizes(config)


def check_numbers(config: RunConfig) -> None:
    """Checks every number whose range does not depend on data.

    Raises:
      ValueError: names the option, the value received and what is allowed.
    """
    for option in ("adapters", "context_dim", "horizon", "seeds", "clusters", "period"):
        checks.at_least(_flag(option), getattr(config, option), 1)
    for option in ("segments", "epoch_length"):
        if getattr(config, option) is not None:
            checks.at_least(_flag(option), getattr(config, option), 1)
    checks.between("--window", config.window, 1, checks.MAX_WINDOW, whole=True)
    if config.epoch_length is not None:
        least = -(-config.horizon // MAX_EPOCHS)
        checks.at_least("--epoch-length", config.epoch_length, least)
    if config.devices is not None:
        checks.between("--devices", config.devices, 1, MAX_DEVICES, whole=True)
    checks.at_least("--seed", config.seed, 0)
    _check_memory(config)
    for option in ("zipf", "spread", "theta_spread", "price_per_ms", "alpha", "noise"):
        checks.between(_flag(option), getattr(config, option), 0.0, MAX_CONSTANT)
    checks.between("--ridge", config.ridge, checks.MIN_RIDGE, MAX_CONSTANT)
    if config.segments is not None:
        checks.between("--segments", config.segments, 1, config.horizon, whole=True)
    if config.costs is not None and config.costs.startswith(_SYNTHETIC):
        checks.between("--price-per-ms", config.price_per_ms, checks.MIN_PRICE, MAX_CONSTANT)
    for option, most in (("adapters", 10**5), ("clusters", 10**5), ("context_dim", 10**4)):
        checks.between(_flag(option), getattr(config, option), 1, most, whole=True)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
