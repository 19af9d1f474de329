"""Plain LinUCB as others write it, on the same contexts, and the check of what it chose.

Every baseline is a class with `serve(first, rounds)`, which serves that many rounds of its
stream from round `first` on (the stream repeats) and returns what it chose. Letters: `L` lanes,
`n` rounds of the stream, `N` adapters, `d` features.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

# A choice counts as the best where float64 statistics of the same choices put it this close.
EXACT = 1e-6
# Float32 has 24 bits: a score is a sum of d^2 products with errors of 6e-8 each, and the
# inverse gathers those of every update before it.
SINGLE = 1e-4
ALPHA, RIDGE = 0.5, 1.0


class Stream(NamedTuple):
    """The rounds that are served, on the host: what the kernel is given, in float32."""

    context: np.ndarray  # [L, n, d]
    utility: np.ndarray  # [L, n, N]
    noise: np.ndarray  # [L, n]


class Baseline(Protocol):
    """A router with a state, started anew for each instance."""

    def serve(self, first: int, rounds: int) -> np.ndarray:
        """Serves rounds and returns the `[rounds, lanes]` adapters that it chose."""
        ...


class Statistics:
    """Float64 statistics of one lane, and the score of every adapter under them."""

    def __init__(self, num_adapters: int, context_dim: int) -> None:
        eye = np.eye(context_dim) / RIDGE
        self.inverse = np.repeat(eye[None], num_adapters, axis=0)
        self.theta = np.zeros((num_adapters, context_dim))

    def scores(self, x: np.ndarray) -> np.ndarray:
        """`[N]` optimistic scores of a context `[d]`."""
        return self.theta @ x + ALPHA * np.sqrt((self.inverse @ x) @ x)

    def observe(self, x: np.ndarray, adapter: int, reward: float) -> None:
        """Adds one observation by Sherman-Morrison."""
        v = self.inverse[adapter] @ x
        growth = 1.0 + v @ x
        self.inverse[adapter] -= np.outer(v, v / growth)
        self.theta[adapter] += (reward - self.theta[adapter] @ x) / growth * v


def worst_gap(stream: Stream, lane: int, chosen: np.ndarray) -> float:
    """How far the scores of a lane's choices are from the best ones, the worst round of all.

    The statistics are those of the choices themselves, in float64, so that a near-tie
    that fell the other way is no difference for all rounds after it.

    Args:
      stream: the rounds.
      lane: which of its lanes.
      chosen: `[n]` adapters, from round 0 on.
    """
    known = Statistics(stream.utility.shape[-1], stream.context.shape[-1])
    worst = 0.0
    for t, adapter in enumerate(np.asarray(chosen, int)):
        x = stream.context[lane, t].astype(np.float64)
        scores = known.scores(x)
        worst = max(worst, float(scores.max() - scores[adapter]))
        reward = float(stream.utility[lane, t, adapter]) + float(stream.noise[lane, t])
        known.observe(x, adapter, reward)
    return worst


class NumpyLoop:
    """One lane, one round after the other, float64: all adapters scored in one product."""

    def __init__(self, stream: Stream) -> None:
        _, self._rounds, num_adapters = stream.utility.shape
        self._known = Statistics(num_adapters, stream.context.shape[-1])
        self._context = stream.context[0].astype(np.float64)
        self._reward = (stream.utility[0] + stream.noise[0][:, None]).astype(np.float64)

    def serve(self, first: int, rounds: int) -> np.ndarray:
        """Serves rounds; `[rounds, 1]`."""
        inverse, theta = self._known.inverse, self._known.theta
        chosen = np.empty((rounds, 1), np.int64)
        for t in range(rounds):
            at = (first + t) % self._rounds
            x = self._context[at]
            directions = inverse @ x
            scores = theta @ x + ALPHA * np.sqrt(directions @ x)
            a = int(scores.argmax())
            v = directions[a]
            growth = 1.0 + v @ x
            inverse[a] -= np.outer(v, v / growth)
            theta[a] += ((self._reward[at, a] - theta[a] @ x) / growth) * v
            chosen[t, 0] = a
        return chosen


class NumpyBatched:
    """All lanes at once, float32, one NumPy call per step for all of them."""

    def __init__(self, stream: Stream) -> None:
        lanes, self._rounds, num_adapters = stream.utility.shape
        dim = stream.context.shape[-1]
        self._stream = stream
        eye = np.eye(dim, dtype=np.float32) / np.float32(RIDGE)
        self._inverse = np.tile(eye, (lanes, num_adapters, 1, 1))
        self._theta = np.zeros((lanes, num_adapters, dim), np.float32)

    def serve(self, first: int, rounds: int) -> np.ndarray:
        """Serves rounds; `[rounds, L]`."""
        context, utility, noise = self._stream
        inverse, theta = self._inverse, self._theta
        lane = np.arange(len(context))
        chosen = np.empty((rounds, len(context)), np.int64)
        for t in range(rounds):
            at = (first + t) % self._rounds
            x = context[:, at]
            column = x[:, :, None]
            directions = (inverse @ column[:, None])[..., 0]
            squared = (directions @ column)[..., 0]
            scores = (theta @ column)[..., 0] + np.float32(ALPHA) * np.sqrt(squared)
            a = scores.argmax(axis=1)
            v = directions[lane, a]
            growth = 1.0 + (v * x).sum(axis=1)
            reward = utility[lane, at, a] + noise[:, at]
            surprise = (reward - (theta[lane, a] * x).sum(axis=1)) / growth
            scaled = v / growth[:, None]
            inverse[lane, a] -= v[:, :, None] * scaled[:, None, :]
            theta[lane, a] += surprise[:, None] * v
            chosen[t] = a
        return chosen


class Numba:
    """Compiled loops, lanes in parallel on all cores, float32 with fast mathematics."""

    def __init__(self, stream: Stream) -> None:
        # Numba's own module is loaded where numba is there, and only then.
        numba_loop = _imported("polar_jax.bench.numba_loop")
        lanes, _, num_adapters = stream.utility.shape
        dim = stream.context.shape[-1]
        self._stream, self._serve = stream, numba_loop.serve
        eye = np.eye(dim, dtype=np.float32) / np.float32(RIDGE)
        self._inverse = np.tile(eye, (lanes, num_adapters, 1, 1))
        self._theta = np.zeros((lanes, num_adapters, dim), np.float32)

    def serve(self, first: int, rounds: int) -> np.ndarray:
        """Serves rounds; `[rounds, L]`."""
        chosen = np.empty((len(self._theta), rounds), np.int64)
        fixed = *self._stream, np.float32(ALPHA), first
        self._serve(self._inverse, self._theta, *fixed, chosen)
        return chosen.T


class Obp:
    """The Open Bandit Pipeline's LinUCB, one lane."""

    def __init__(self, stream: Stream) -> None:
        _, self._rounds, num_adapters = stream.utility.shape
        dim = stream.context.shape[-1]
        self._context = stream.context[0].astype(np.float64)
        self._reward = (stream.utility[0] + stream.noise[0][:, None]).astype(np.float64)
        self._policy = _imported("obp.policy.linear").LinUCB(
            dim=dim, n_actions=num_adapters, epsilon=ALPHA
        )

    def serve(self, first: int, rounds: int) -> np.ndarray:
        """Serves rounds; `[rounds, 1]`."""
        chosen = np.empty((rounds, 1), np.int64)
        for t in range(rounds):
            at = (first + t) % self._rounds
            x = self._context[at : at + 1]
            a = int(self._policy.select_action(x)[0])
            self._policy.update_params(action=a, reward=self._reward[at, a], context=x)
            chosen[t, 0] = a
        return chosen


class Mabwiser:
    """MABWiser's LinUCB, one lane. It is fitted to a first round; any choice ties for best then."""

    def __init__(self, stream: Stream) -> None:
        mab = _imported("mabwiser.mab")
        _, self._rounds, num_adapters = stream.utility.shape
        self._context = stream.context[0].astype(np.float64)
        self._reward = (stream.utility[0] + stream.noise[0][:, None]).astype(np.float64)
        rule = mab.LearningPolicy.LinUCB(alpha=ALPHA, l2_lambda=RIDGE)
        self._policy = mab.MAB(list(range(num_adapters)), rule)
        self._fitted = False

    def serve(self, first: int, rounds: int) -> np.ndarray:
        """Serves rounds; `[rounds, 1]`."""
        chosen = np.empty((rounds, 1), np.int64)
        for t in range(rounds):
            at = (first + t) % self._rounds
            x = self._context[at : at + 1]
            a: Any = self._policy.predict(x) if self._fitted else 0
            learn = self._policy.partial_fit if self._fitted else self._policy.fit
            learn([a], [self._reward[at, a]], x)
            self._fitted = True
            chosen[t, 0] = a
        return chosen


class Kind(NamedTuple):
    """A baseline, and what is known of it."""

    name: str
    make: Callable[[Stream], Baseline]
    module: str  # that must be there, "" for none of its own
    batched: bool  # whether it serves all lanes, else the first
    cores: bool  # whether it uses all cores, else one
    tolerance: float
    most_rounds: int  # per sample: the slow ones get few


KINDS = (
    Kind("NumPy loop", NumpyLoop, "", False, False, EXACT, 10**9),
    Kind("NumPy over lanes", NumpyBatched, "", True, False, SINGLE, 10**9),
    Kind("numba", Numba, "numba", True, True, SINGLE, 10**9),
    Kind("obp", Obp, "obp.policy.linear", False, False, EXACT, 2_000),
    Kind("mabwiser", Mabwiser, "mabwiser.mab", False, False, EXACT, 500),
)
REFERENCE = KINDS[0].name


def installed() -> tuple[list[Kind], dict[str, str]]:
    """The baselines that can run here, and why the others cannot, by name."""
    there, missing = [], {}
    for kind in KINDS:
        try:
            if kind.module:
                _imported(kind.module)
            there.append(kind)
        except ImportError as error:
            missing[kind.name] = " ".join(str(error).split())
    return there, missing


def _imported(module: str) -> Any:
    """A module of somebody else, whose warnings on import are not ours to show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError:
            # Obp's package loads its LinUCB, then neural policies, which need torch: without
            # torch the package fails and the module that is wanted is there.
            if module in sys.modules:
                return sys.modules[module]
            raise
