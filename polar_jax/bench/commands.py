"""The options of `polar-jax bench`. Does not load JAX."""

import dataclasses
import pathlib
import re
from typing import Annotated, Any

import tyro

from polar_jax import checks

_MAX_REPEATS, _MAX_LANES, _MAX_SIZE = 1_000, 2**20, 4_096
# The stream's blocks: rounds are drawn so many at a time.
_BLOCK = 256


def _arg(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Decisions per second on this machine, against baselines and the machine's own limits.

    For every shape and number of lanes: the kernels alone on ready rounds, whole runs with
    requests, router, controller and metrics, and, in the same run, sample by sample in turn, LinUCB
    as others write it: a NumPy loop, NumPy over lanes, and numba, obp and mabwiser where they are
    installed (pip install 'polar-jax[bench]'). Medians; ratios are to the NumPy loop on one core.
    Beside them what a decision costs at least, from this machine's matrix products and copies.
    docs/benchmark.md explains every column.

    With the defaults it takes tens of minutes on two cores. Examples: `polar-jax bench --small`
    for a minute's look; `polar-jax bench --shapes 15x16 --lanes 64 --json bench.json` for one
    case; `polar-jax bench --scaling --out bench` for the cost along every axis, with figures;
    `POLAR_JAX_KERNEL=xla polar-jax bench` for another kernel in whole runs.

    Attributes:
      shapes: adapters x features, separated by commas or spaces.
      lanes: numbers of lanes, separated by commas or spaces.
      policies: policies to measure, separated by commas or spaces; full_cache is LinUCB and nothing
        else, as the baselines are, and is checked like them.
      kernels: kernels to measure alone, of xla, native, pallas and blocked, separated by commas or
        spaces (docs/performance.md). Whole runs take what POLAR_JAX_KERNEL says.
      rounds: rounds of a call at most, a multiple of 256; what is drawn for a kernel, which longer
        samples repeat.
      repeats: samples of everything, at least 1; medians of fewer than 5 tell little.
      seconds: of one sample, about.
      memory_limit: GiB for ready lanes; cases that need more are named and left out.
      small: a first look in under a minute: one shape, 64 lanes, short samples, two policies.
      scaling: measure how the cost of a decision grows with adapters, features, lanes and
        rounds instead, round 15x16 and 64 lanes; writes scaling.csv and figures to --out.
      out: folder for what --scaling writes.
      json: file for everything that was measured, every sample included.
      overwrite: replace files that are there.
      devices: use at most so many devices.
      quiet: print nothing but errors.
    """

    shapes: tuple[str, ...] = ("15x16,64x32,256x64",)
    lanes: tuple[str, ...] = ("1,64,1024,8192",)
    policies: tuple[str, ...] = ("full_cache,lru,polar_experts",)
    kernels: Annotated[tuple[str, ...], _arg("[STR [STR ...]]", "those that can run here")] = ()
    rounds: Annotated[int | None, _arg("INT", "as many as a run has")] = None
    repeats: int = 5
    seconds: float = 0.5
    memory_limit: Annotated[float | None, _arg("GIB", "half of what there is")] = None
    small: bool = False
    scaling: bool = False
    out: Annotated[pathlib.Path, _arg("DIR", "bench")] = pathlib.Path("bench")
    json: Annotated[pathlib.Path | None, _arg("FILE", "none")] = None
    overwrite: bool = False
    devices: Annotated[int | None, _arg("INT", "all")] = None
    quiet: bool = False

    def check(self) -> None:
        """Checks every number.

        Raises:
          ValueError: names the option, what was received and what is allowed.
        """
        checks.between("--repeats", self.repeats, 1, _MAX_REPEATS, whole=True)
        checks.between("--seconds", self.seconds, 1e-4, 3_600.0)
        if self.rounds is not None:
            checks.between("--rounds", self.rounds, _BLOCK, 2**20, whole=True)
            if self.rounds % _BLOCK:
                raise ValueError(f"--rounds must be a multiple of {_BLOCK}, got {self.rounds}.")
        if self.devices is not None:
            checks.at_least("--devices", self.devices, 1)
        if self.memory_limit is not None:
            checks.finite_at_least("--memory-limit", self.memory_limit, 0.0, above=True)
        self.shape_numbers()
        self.lane_numbers()
        if self.scaling and self.json is not None:
            raise ValueError(
                f"--json must not be given with --scaling, whose numbers are in scaling.csv; "
                f"got {str(self.json)!r}."
            )

    def sized(self) -> "Bench":
        """The options, with what `--small` puts in place of the defaults."""
        if not self.small:
            return self
        small: dict[str, Any] = {
            "shapes": ("15x16",),
            "lanes": ("64",),
            "seconds": 0.05,
            "rounds": 256,
        }
        small["policies"] = ("full_cache,polar_experts",)
        untouched = {
            field.name: small[field.name]
            for field in dataclasses.fields(self)
            if field.name in small and getattr(self, field.name) == field.default
        }
        return dataclasses.replace(self, **untouched)

    def shape_numbers(self) -> list[tuple[int, int]]:
        """The shapes as numbers.

        Raises:
          ValueError: for what is no shape, repeats one, or no shape at all.
        """
        words = _split(self.shapes)
        for word in words:
            if not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", word):
                raise ValueError(
                    f"--shapes must be adapters x features such as 15x16, each in [1, "
                    f"{_MAX_SIZE}]; got {word!r}."
                )
        checks.distinct("--shapes", words)
        shapes = [(int(n), int(d)) for n, d in (word.split("x") for word in words)]
        for number in (number for shape in shapes for number in shape):
            checks.between("--shapes", number, 1, _MAX_SIZE, whole=True)
        if not shapes:
            raise ValueError("--shapes must name one or more, such as 15x16; got none.")
        return shapes

    def policy_names(self) -> list[str]:
        """The policies, each known.

        Raises:
          ValueError: for an unknown one, one that is repeated, or none at all.
        """
        from polar_jax import policies

        words = _split(self.policies)
        checks.distinct("--policies", words)
        if not words:
            raise ValueError("--policies must name one or more, such as lru; got none.")
        return [checks.one_of("--policies", word, policies.NAMES) for word in words]

    def kernel_names(self, platform: str) -> list[str]:
        """The kernels that were named, each of which can run on a kind of device here.

        Raises:
          ValueError: for an unknown one, one that cannot run here, or one that is repeated.
        """
        from polar_jax import kernels

        words = _split(self.kernels)
        checks.distinct("--kernels", words)
        return [kernels.check("--kernels", word, platform) for word in words]

    def lane_numbers(self) -> list[int]:
        """The numbers of lanes, fewest first.

        Raises:
          ValueError: for what is no whole number in range, repeats one, or none at all.
        """
        words = _split(self.lanes)
        for word in words:
            if not word.isdecimal() or not 1 <= int(word[:9]) <= _MAX_LANES:
                raise ValueError(
                    f"--lanes must be whole numbers in [1, {_MAX_LANES}], separated by commas; "
                    f"got {word!r}."
                )
        checks.distinct("--lanes", words)
        if not words:
            raise ValueError("--lanes must name one or more, such as 1,64; got none.")
        return sorted(int(word) for word in words)


def _split(words: tuple[str, ...]) -> list[str]:
    return [word for entry in words for word in entry.replace(",", " ").split()]
