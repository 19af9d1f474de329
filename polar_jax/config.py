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
# Measured requests: shipped with the package, or files with one of these suffixes.
REAL = "real"
REPLAY_SUFFIXES = (".npz", ".parquet")
ORDERS = ("recorded", "shuffled", "independent", "sticky", "drifting", "trace")
BENCHMARKS = ("auto", "utilities", "linear")
TRACES = ("azure-2023-conv", "azure-2023-code")
DEFAULT_ADAPTERS, DEFAULT_CONTEXT_DIM = 15, 8
BETAS = ("constant", "theory")
PRIORS = ("zero", "pooled")
MAX_STAY = 0.9
MEASURED_COSTS = "qwen2.5-7b"
MEASURED_TIERS = ("disk+memory", "memory", "disk", "cold", "remote")
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
      adapters: LoRA adapters in the library (N), at least 1; not with a replay, which has its own.
      slots: adapters that fit in fast memory (K), in [0, N].
      capacity_bytes: fast memory in bytes, in place of --slots: 200e6, 200MB or 64MiB. Adapters
        then have the sizes of --size-bytes, or of the column size_bytes of --paging.
      size_bytes: the size of each adapter in bytes, separated by commas, as 8MiB,16MiB,32MiB.
      context_dim: features of a request's context (d), at least 1; not with a replay.
      horizon: requests per simulation (T), at least 1.
      seeds: simulations per policy, each on a stream of its own, at least 1; intervals
        need 2 or more.
      seed: base of all random numbers, a whole number in [0, 2^31 - 1].
      policies: policies to run, separated by commas or spaces, or "all". There are polar,
        polar_plus, polar_admit, polar_experts, polar_oexp, lru, lfu, gdsf, landlord, arc,
        lecar, fastlibra, static, no_cache, full_cache, oracle_cache, oracle, cost_blind,
        no_forced, polar_plus_no_forced, epsilon_greedy, lin_ts and random.
      environment: stream of requests: clustered, isotropic, sticky, drifting, rotating or
        bernoulli; "real", 15 LoRA adapters that were trained and measured on 4,500 requests; or
        a replay of your own measurements, a .npz or .parquet file (docs/replays.md).
      order: requests of a replay: recorded, as they came; shuffled; independent, a domain of
        requests by popularity every time; sticky or drifting, which stay in a domain as the
        synthetic streams of these names do; trace, which stays in it by the time that passes
        between arrivals.
      arrivals: times of a replay's requests: azure-2023-conv or azure-2023-code, real traces
        shipped with the package, or a CSV or JSON Lines file. With times, what arrives
        while an adapter is being loaded waits, and the waiting is reported.
      missing: what a missing utility of a replay means: a number, or adapter-mean, the mean of
        the adapter's measured ones.
      benchmark: what perfect routing knows of a replay: utilities, the measured ones; linear,
        what the best linear policy in hindsight expects; auto, linear where every utility
        is 0 or 1.
      clusters: clusters of contexts, at least 1; a replay has domains instead.
      zipf: exponent of the popularity of clusters or domains, at least 0; at 0 all are alike.
      spread: standard deviation per coordinate of contexts around their cluster's centre,
        at least 0; centres have length 1.
      theta_spread: standard deviation per coordinate of adapters around their cluster's
        centre, at least 0.
      stay: probability that the next request keeps its cluster or domain, in [0, 0.9] (sticky,
        drifting, trace).
      segments: orders of popularity over the horizon, in [1, T] (sticky, drifting, trace).
      period: requests before the popular pair of clusters moves on, at least 1 (rotating).
      costs: paging costs: "qwen2.5-7b", load times of LoRA adapters measured in vLLM and
        shipped with the package, or "synthetic:MEAN", drawn per seed as MEAN * U(0.5, 1.5)
        units of utility.
      paging: CSV, JSON or Parquet file of measured load times, in place of --costs, with
        columns adapter and ms. Adapters are taken in the order of the file.
      tier: where adapters are paged in from. With the shipped costs disk+memory, memory, disk,
        cold (first loads from disk) or remote (a stress case of seconds, rebuilt from three
        published quantiles); with --paging a tier of the file, or several as A+B, which add up.
      price_per_ms: utility lost per millisecond of latency, at least 0 (1e-9 with synthetic
        costs, where it turns costs into milliseconds).
      alpha: confidence factor of the router, units of utility, at least 0.
      ridge: regularisation of the router's regressions, in [1e-6, 1e6].
      noise: standard deviation of the reward noise, units of utility, at least 0; also the
        sigma of --beta theory. Not read by bernoulli, whose rewards are 0 or 1 (sigma 0.5),
        nor by a replay, whose rewards are as measured (sigma half the range of its utilities).
      epoch_length: requests between two replans of polar, at least 1.
      window: latest contexts that a replan of polar and polar_plus is made on, in [1, 65536];
        a set chosen on few of them stays a little wrong for ever.
      switching_term: whether polar and polar_plus count the cost of loads when they replan.
      beta: confidence widths, constant (alpha) or theory (the proven schedule).
      prior: what is expected of an adapter that was never tried: zero, or pooled, what all have
        in common so far, which matters where utilities are not about 0 on average.
      out: folder for the results.
      overwrite: replace results that --out already holds.
      devices: devices to use, at least 1; no result depends on it.
      portable: compile for any processor with AVX2, so that unlike machines give the same bits.
      quiet: print nothing but errors.
    """

    adapters: Annotated[int | None, _arg("INT", f"{DEFAULT_ADAPTERS}, or all of --paging")] = None
    slots: Annotated[int | None, _arg("INT", "4, or N; none with --capacity-bytes")] = None
    capacity_bytes: Annotated[int | None, _bytes(), _arg("BYTES", "none: slots")] = None
    size_bytes: Annotated[str | None, _arg("BYTES,...", "those of --paging")] = None
    context_dim: Annotated[int | None, _arg("INT", f"{DEFAULT_CONTEXT_DIM}")] = None
    horizon: int = 20_000
    seeds: int = 64
    seed: int = 0
    policies: tuple[str, ...] = DEFAULT_POLICIES
    environment: str = "clustered"
    order: Annotated[str | None, _arg("STR", "recorded; sticky for real")] = None
    arrivals: Annotated[str | None, _arg("STR", "azure-2023-conv for trace, else none")] = None
    missing: Annotated[str | None, _arg("STR", "no utility may be missing")] = None
    benchmark: str = "auto"
    clusters: int = 6
    zipf: float = 1.2
    spread: float = 0.25
    theta_spread: float = 0.35
    stay: float = 0.73
    segments: Annotated[int | None, _arg("INT", "4 for sticky and trace, 32 for drifting")] = None
    period: int = 2_000
    costs: Annotated[str | None, _arg("STR", f"{MEASURED_COSTS} without --paging")] = None
    paging: Annotated[pathlib.Path | None, _arg("FILE", "none")] = None
    tier: Annotated[str | None, _arg("STR", "disk+memory; with --paging all of the file")] = None
    price_per_ms: float = 0.0154
    alpha: float = 0.5
    ridge: float = 1.0
    noise: float = 0.1
    epoch_length: Annotated[int | None, _arg("INT", "square root of T, rounded up")] = None
    window: int = 512
    switching_term: bool = True
    beta: str = "constant"
    prior: Annotated[str | None, _arg("STR", "zero; pooled for a replay")] = None
    out: Annotated[pathlib.Path | None, _arg("DIR", "next free of results/run-001, ...")] = None
    overwrite: bool = False
    devices: Annotated[int | None, _arg("INT", "every core, or every accelerator")] = None
    portable: bool = False
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
      ValueError: for costs or a tier that are not understood, or given twice.
    """
    if config.costs is not None and config.paging is not None:
        raise ValueError(
            f"--costs and --paging exclude each other, got --costs {config.costs!r} and "
            f"--paging {str(config.paging)!r}."
        )
    if config.costs is None or config.costs == MEASURED_COSTS:
        if config.tier is not None and config.paging is None:
            checks.one_of("--tier", config.tier, MEASURED_TIERS)
        return None
    allowed = f'"{MEASURED_COSTS}" or "synthetic:MEAN" with MEAN a number in [0, {MAX_COST:g}]'
    text = config.costs.removeprefix(_SYNTHETIC)
    try:
        mean = float(text)
    except ValueError:
        mean = float("nan")
    if not config.costs.startswith(_SYNTHETIC) or not 0.0 <= mean <= MAX_COST:
        raise ValueError(f"--costs must be {allowed}; got {config.costs!r}.")
    if config.tier is not None:
        raise ValueError(
            f"--tier goes with measured load times, got --tier {config.tier!r} and "
            f"--costs {config.costs!r}."
        )
    return mean


def is_replay(environment: str) -> bool:
    """Whether an environment is measured requests, shipped or in a file."""
    return environment == REAL or pathlib.PurePath(environment).suffix.lower() in REPLAY_SUFFIXES


def check_environment(config: RunConfig) -> None:
    """Checks the options that name a stream, before any file is read.

    Raises:
      ValueError: for an unknown name, or an option of the other kind of stream.
    """
    if not is_replay(config.environment):
        files = f"a file ending in {' or '.join(REPLAY_SUFFIXES)}"
        checks.one_of("--environment", config.environment, (*ENVIRONMENTS, REAL, files))
        for option in ("order", "arrivals", "missing", "benchmark"):
            if getattr(config, option) not in (None, "auto"):
                raise ValueError(
                    f"--{option} needs a replay as --environment ({REAL}, or {files}), got "
                    f"{config.environment!r}."
                )
    if config.order is not None:
        checks.one_of("--order", config.order, ORDERS)
    checks.one_of("--benchmark", config.benchmark, BENCHMARKS)
    if config.prior is not None:
        checks.one_of("--prior", config.prior, PRIORS)


def with_sizes(config: RunConfig, replay: tuple[int, int] | None) -> RunConfig:
    """The options with the numbers of adapters and features that they mean.

    Args:
      config: the options.
      replay: adapters and features of the replay that is its environment; None for another.

    Raises:
      ValueError: where a replay's own numbers are given.
    """
    sizes = replay or (DEFAULT_ADAPTERS, DEFAULT_CONTEXT_DIM)
    changes = {}
    for option, size in zip(("adapters", "context_dim"), sizes, strict=True):
        given = getattr(config, option)
        if replay is not None and given is not None:
            raise ValueError(
                f"{_flag(option)} must be left out with a replay, which has its own ({size}); got "
                f"{given}."
            )
        changes[option] = size if given is None else given
    return dataclasses.replace(config, **changes)


def sizes(config: RunConfig) -> tuple[int, int]:
    """Adapters and features, defaults included."""
    adapters = DEFAULT_ADAPTERS if config.adapters is None else config.adapters
    features = DEFAULT_CONTEXT_DIM if config.context_dim is None else config.context_dim
    return adapters, features


def num_slots(config: RunConfig) -> int | None:
    """`K`, or None where a capacity in bytes stands in its place."""
    if config.capacity_bytes is not None:
        return None
    return min(DEFAULT_SLOTS, sizes(config)[0]) if config.slots is None else config.slots


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
    words, adapters = config.size_bytes.split(","), sizes(config)[0]
    if len(words) != adapters:
        lacking = f"; adapter {len(words) + 1} has none" if len(words) < adapters else ""
        raise ValueError(
            f"--size-bytes must hold the size of each of {adapters} adapters, got "
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
    slots, adapters = num_slots(config), sizes(config)[0]
    if slots is not None and not 0 <= slots <= adapters:
        raise ValueError(
            f"--slots must be a whole number in [0, {adapters}], the number of adapters; got "
            f"{slots}."
        )
    if config.capacity_bytes is not None:
        checks.between("--capacity-bytes", config.capacity_bytes, 0, checks.MAX_BYTES, whole=True)
    adapter_sizes(config)


def check_numbers(config: RunConfig) -> None:
    """Checks every number whose range does not depend on data.

    Raises:
      ValueError: names the option, the value received and what is allowed.
    """
    for option in ("horizon", "seeds", "clusters", "period"):
        checks.at_least(_flag(option), getattr(config, option), 1)
    for option in ("adapters", "context_dim", "segments", "epoch_length"):
        if getattr(config, option) is not None:
            checks.at_least(_flag(option), getattr(config, option), 1)
    checks.between("--window", config.window, 1, checks.MAX_WINDOW, whole=True)
    if config.epoch_length is not None:
        least = -(-config.horizon // MAX_EPOCHS)
        checks.at_least("--epoch-length", config.epoch_length, least)
    if config.devices is not None:
        checks.between("--devices", config.devices, 1, MAX_DEVICES, whole=True)
    checks.at_least("--seed", config.seed, 0)
    adapters, features = sizes(config)
    _check_memory(config)
    for option in ("zipf", "spread", "theta_spread", "price_per_ms", "alpha", "noise"):
        checks.between(_flag(option), getattr(config, option), 0.0, MAX_CONSTANT)
    checks.between("--ridge", config.ridge, checks.MIN_RIDGE, MAX_CONSTANT)
    if config.segments is not None:
        checks.between("--segments", config.segments, 1, config.horizon, whole=True)
    if config.costs is not None and config.costs.startswith(_SYNTHETIC):
        checks.between("--price-per-ms", config.price_per_ms, checks.MIN_PRICE, MAX_CONSTANT)
    checks.between("--adapters", adapters, 1, 10**5, whole=True)
    checks.between("--clusters", config.clusters, 1, 10**5, whole=True)
    checks.between("--context-dim", features, 1, 10**4, whole=True)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
