"""What work costs: seconds per decision, per compilation, and when padding is cheaper.

Constants were measured on the machine of `docs/sweeps.md` (2 CPU cores). They size shards and
decide on padding, so they are part of the plan and the same everywhere: a plan does not
depend on the machine that makes it.
"""

import math
from collections.abc import Sequence

from polar_jax.cache_search import num_subsets
from polar_jax.lane_calls import Shape
from polar_jax.oracles import EXACT_ORACLE_SUBSETS, ORACLE_CONTEXTS
from polar_jax.policies import Problem

# Sizes that programs may be compiled for; beyond the last, multiples of it.
LADDER = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Seconds: of a decision, of each number of its precision matrices, of a drawn round and
# each of its features, of one program that serves requests, of the four beside it.
_DECISION, _PER_NUMBER = 3.0e-7, 6.0e-11
_EXPERT_PER_ADAPTER, _PER_PAIR = 1.0e-8, 2.0e-9
_ROUND, _PER_FEATURE = 1.5e-7, 1.6e-8
_SUBSET_CONTEXT = 2.5e-10
COMPILE_POLICY, COMPILE_STREAM = 5.0, 6.0


def rung(size: int) -> int:
    """The smallest size on the ladder that holds `size`."""
    for step in LADDER:
        if size <= step:
            return step
    return -(-size // LADDER[-1]) * LADDER[-1]


def padded(shape: Shape) -> Shape:
    """The shape on the ladder that holds a shape."""
    return Shape(rung(shape.num_adapters), rung(shape.context_dim))


def decision_seconds(shape: Shape, *, experts: bool, pairs: bool) -> float:
    """Seconds per decision.

    Args:
      shape: sizes that the program is compiled for.
      experts: whether the policy runs POLAR-E's virtual caches.
      pairs: whether it keeps a number per pair of adapters.
    """
    n, d = shape
    seconds = _DECISION + _PER_NUMBER * n * d * d
    if experts:
        seconds += _EXPERT_PER_ADAPTER * n
    return seconds + (_PER_PAIR * n * n if pairs else 0.0)


def work_seconds(work: float) -> float:
    """Seconds of work as `chunks` counts it."""
    return _PER_NUMBER * work


def stream_seconds(problem: Problem, shape: Shape) -> float:
    """Seconds per seed of what its policies share: the rounds and the static oracle."""
    per_round = _ROUND + _PER_FEATURE * shape.context_dim
    subsets = min(num_subsets(problem.num_adapters, problem.cache_slots), EXACT_ORACLE_SUBSETS)
    oracle = ORACLE_CONTEXTS * subsets * max(problem.cache_slots, 1) * _SUBSET_CONTEXT
    return (problem.horizon + ORACLE_CONTEXTS) * per_round + oracle


def padding_verdict(
    padding: str,
    own: Sequence[tuple[Shape, float]],
    ladder: Shape,
    *,
    work: float,
    num_rules: int,
    num_streams: int,
) -> tuple[bool, str]:
    """Whether problems of similar sizes share programs, and why.

    Args:
      padding: what the spec asks for: "auto", "always" or "never".
      own: the distinct shapes and the seconds of running each unpadded.
      ladder: the shape on the ladder that holds them all.
      work: seconds of running all of them at that shape.
      num_rules: programs that serve requests, per shape.
      num_streams: kinds of stream, each of which compiles its own draws.

    Returns:
      `(whether to pad, a sentence)`.
    """
    compile_once = num_rules * COMPILE_POLICY + num_streams * COMPILE_STREAM
    apart = sum(seconds for _, seconds in own) + len(own) * compile_once
    together = work + compile_once
    name = f"{ladder.num_adapters} adapters and {ladder.context_dim} features"
    if padding != "auto":
        return padding == "always", f'the spec says padding = "{padding}"'
    if len(own) == 1:
        return False, "one pair of sizes: nothing to share"
    told = f"about {_seconds(together)} padded to {name}, {_seconds(apart)} apart"
    return together < apart, f"{len(own)} pairs of sizes: {told}, compilation included"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{math.ceil(seconds / 60)} min"
