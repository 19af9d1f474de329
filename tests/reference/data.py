"""Inputs and outputs of the reference: plain records of NumPy arrays.

Letters used in shapes: `T` rounds, `N` adapters, `d` context features, `M` sampled contexts,
`K` slots of fast memory.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]
Words: TypeAlias = NDArray[np.uint32]


@dataclass(frozen=True)
class ReferenceRounds:
    """Everything random about a lane, drawn before it starts."""

    context: Floats  # [T, d]
    utility: Floats  # [T, N], expected utility of each adapter
    noise: Floats  # [T], reward noise; uniform [0, 1) where rewards are 0/1
    binary_reward: bool
    policy_bits: Words  # [T, 2], for epsilon-greedy and random routing
    thompson_normal: Floats  # [T, N], standard normals for Thompson sampling
    reservoir_slot: Ints  # [T], slot that takes the round's context, -1 for none
    expert_uniform: Floats  # [T] in [0, 1), which of LeCaR's experts evicts
    slot_gumbel: Floats  # [T, N, N], standard Gumbel numbers per slot and adapter (polar_oexp)

    def __post_init__(self) -> None:
        # Products of float32 inputs would be rounded before they are summed.
        for name in (
            *("context", "utility", "noise", "thompson_normal"),
            *("expert_uniform", "slot_gumbel"),
        ):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        object.__setattr__(self, "policy_bits", np.asarray(self.policy_bits, np.uint32))
        object.__setattr__(self, "reservoir_slot", np.asarray(self.reservoir_slot, np.int64))


@dataclass(frozen=True)
class ReferenceProblem:
    """Costs and sizes of the adapters, and the size of fast memory."""

    paging_cost: Floats  # [N], utility lost by serving through a non-resident adapter
    switch_cost: Floats  # [N], utility lost by a load that no request has paid for
    paging_ms: Floats  # [N], latency of a page-in, milliseconds
    cache_slots: int  # K
    size: Floats = field(default_factory=lambda: np.ones(0))  # [N]; ones where left out
    size_bytes: tuple[int, ...] = ()  # N sizes, where a capacity stands in place of the slots
    capacity_bytes: int | None = None  # None for slots

    def __post_init__(self) -> None:
        if self.size.size == 0:
            object.__setattr__(self, "size", np.ones(len(self.paging_cost)))
        for name in ("paging_cost", "switch_cost", "paging_ms", "size"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))


@dataclass(frozen=True)
class ReferenceSettings:
    """Constants of the policies; the defaults are those of the specification."""

    alpha: float = 0.5
    ridge: float = 1.0
    theory_beta: bool = False
    sigma: float = 0.1
    delta: float = 0.05
    theta_bound: float = 1.0
    window: int = 512
    first_epoch: int = 64
    quota_scale: float = 1.0  # kappa
    half_life: float = 100.0
    margin: float = 0.2
    value_beta_max: float = 0.5
    half_lives: tuple[float, ...] = (30.0, 300.0, 3000.0)
    score_half_life: float = 500.0
    score_growth: float = 0.125
    epsilon: float = 0.05
    thompson_scale: float | None = None  # None: alpha
    epoch_length: int | None = None  # None: ceil(sqrt(T))
    switching_term: bool = True
    amortise: float | None = None  # None: min(rounds left, 4 * next epoch's length)
    use_reservoir: bool = False
    solver_plus: str = "exact"  # or "local_search"
    use_half_life: float = 100.0  # of fastlibra's use probabilities
    lecar_learning_rate: float = 0.45
    lecar_discount: float = 0.005  # to the power 1/K per request
    hedge_scale: float = 1.0  # factor of polar_oexp's rate


@dataclass
class ReferenceLane:
    """What one policy did on one stream of requests."""

    actions: Ints  # [T]
    forced: Bools  # [T], the forcing rule applied, whatever it chose
    resident: Bools  # [T, N], the set each request was served with
    switching: Floats  # [T], cost of unpaid loads booked to the round
    loads: Ints  # [T], entries into the resident set booked to the round
    switching_ms: Floats  # [T], latency of the unpaid loads
    final_resident: Bools  # [N], the set after the last round
    theta_hat: Floats  # [N, d], after the last update
    pulls: Ints  # [N]


@dataclass
class Replay:
    """How far an engine's own decisions are from the reference's rules."""

    worst_action_gap: float  # best score minus the chosen one's, worst round
    worst_replan_gap: float  # loss of G per round / max(1, |G| per round), worst replan
    action_near_ties: int  # rounds whose two best scores are within the tolerance
    wrong_forced: int  # rounds forced, or not forced, against the rule
    set_mismatches: int  # changes of the set that the rule does not explain
