"""States, inputs and component types shared by the whole engine.

Shape letters used in every comment of the package: `N` adapters, `K` cache slots,
`d` context features, `n` rounds of a chunk, `T` rounds of a run, `E` experts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
from jax import Array


class Room(flax.struct.PyTreeNode):
    """Fast memory that adapters of different size share; whole units, see `capacity.units`.

    Problems with slots hold None in its place, so that their programs know nothing of sizes.
    """

    size: Array  # [N] int32, units; capacity + 1 where an adapter can never fit
    capacity: Array  # [] int32, units
    relative: Array  # [N] float, size over the smallest size


class Rounds(NamedTuple):
    """Everything random about `n` consecutive rounds, drawn before they are decided.

    A policy adds no randomness of its own: two runs on equal `Rounds` are equal, and
    policies compared on the same `Rounds` share their random numbers.
    """

    context: Array  # [n, d] float, norm at most 1
    utility: Array  # [n, N] float, expected utility of each adapter
    noise: Array  # [n] float, reward noise; uniform on [0, 1) where rewards are 0/1
    latency_uniform: Array  # [n] float32 in [0, 1), picks the measured latency
    reservoir_slot: Array  # [n] int32, slot of the uniform reservoir, -1 for none
    policy_bits: Array  # [n, 2] uint32, for policies that randomise
    benchmark: Array | None = None  # [n, N] float, what perfect routing knows; utility where None
    arrival_gap: Array | None = None  # [n] float, ms since the arrival before; None: not timed


class PooledState(flax.struct.PyTreeNode):
    """One ridge regression over all adapters' rewards: what is expected of an unknown one."""

    precision_inv: Array  # [d, d], (ridge*I + sum of all x x^T)^-1
    theta: Array  # [d], ridge estimate
    ridge: Array  # [], regularisation


class RouterState(flax.struct.PyTreeNode):
    """Ridge statistics of every adapter, split so that float32 sums stay accurate.

    The precision is `precision` plus `precision_recent` unpacked: adding a unit to a sum of 1e7 is
    lost in float32, so the rounds since the last refresh are summed apart.
    """

    precision: Array  # [N, d, d], ridge*I + sum of x x^T up to the last refresh
    precision_recent: Array  # [N, d (d+1)/2], sum of x x^T since then, packed
    precision_inv: Array  # [N, d, d], inverse of the precision
    reward_sum: Array  # [N, d], sum of r x up to the last refresh
    reward_recent: Array  # [N, d], sum of r x since the last refresh
    theta_hat: Array  # [N, d], ridge estimate
    pulls: Array  # [N] int32, times chosen
    pooled: PooledState | None = None  # the adapters' common prior; they start from 0 where None


class Scores(flax.struct.PyTreeNode):
    """What a router knows about one request before it chooses."""

    mean: Array  # [N], estimated utility
    width: Array  # [N], confidence width without its factor beta
    beta: Array  # [N], confidence factor
    index: Array  # [N], what the router maximises, paging cost left out
    direction: Array  # [N, d], precision_inv @ context, reused by the update


class RouteInputs(NamedTuple):
    """One round as a router sees it."""

    context: Array  # [d]
    utility: Array  # [N], what perfect routing knows, read by the perfect router alone
    policy_bits: Array  # [2] uint32
    resident: Array  # [N] bool
    paging_cost: Array  # [N], units of utility
    quota: Array  # [] int32, pulls below which an adapter is explored
    active: Array  # [N] bool, False for adapters that only fill up a shape
    num_features: Array  # [] int32, features of the context that do not fill up a shape


class Choice(NamedTuple):
    """A routing decision."""

    adapter: Array  # [] int32
    forced: Array  # [] bool, True where exploration overruled the index


class AdmitInputs(NamedTuple):
    """What a controller may use after a request was served."""

    scores: Scores
    adapter: Array  # [] int32, the adapter that served the request
    resident: Array  # [N] bool, the set while it was served
    paging_cost: Array  # [N]
    switch_cost: Array  # [N], cost of a load that no request has paid for
    size: Array  # [N], relative size of each adapter (1 where all are equal)
    active: Array  # [N] bool, False for adapters that only fill up a shape
    cache_slots: Array  # [] int32
    policy_bits: Array  # [2] uint32, the round's; see `controllers.own_key`
    room: Room | None = None  # what limits the set where sizes differ, in place of the slots


class Admission(NamedTuple):
    """The set for the next round and what it cost."""

    resident: Array  # [N] bool
    bought: Array  # [N] bool, loads that no request had paid for


class ReplanInputs(NamedTuple):
    """What an epoch controller plans from."""

    mean: Array  # [m, N], estimated utilities on the sampled contexts
    optimistic: Array  # [m, N], mean + beta * width
    weight: Array  # [m], 0 where a sampled context is padding, else 1
    resident: Array  # [N] bool, the set now
    paging_cost: Array  # [N]
    switch_cost: Array  # [N]
    cache_slots: Array  # [] int32
    amortised_rounds: Array  # [] float, rounds over which a load is amortised
    policy_bits: Array  # [2] uint32, of the round just served
    active: Array  # [N] bool, False for adapters that only fill up a shape
    subsets: Any  # cache_search.SubsetTable, shared by all lanes
    room: Room | None = None  # what limits the set where sizes differ, in place of the slots


class Router(NamedTuple):
    """A routing rule over shared ridge statistics: pure functions, no hidden state."""

    score: Callable[[Any, RouterState, RouteInputs], Scores]
    select: Callable[[Any, RouterState, Scores, RouteInputs], Choice]
    randomised: bool = False  # whether it reads `policy_bits`
    pooled: bool = False  # whether estimates start from what all adapters have in common


class Controller(NamedTuple):
    """A residency rule: what it remembers, admission on a request, replanning.

    `replan` is None where the set never changes at epoch boundaries, `admit` where it
    never changes between them. `replan` maps constants, memory and `ReplanInputs` to the
    new memory and the `[N]` set for the next rounds.
    """

    init: Callable[..., Any]
    admit: Callable[[Any, Any, AdmitInputs], tuple[Any, Admission]] | None
    replan: Callable[[Any, Any, ReplanInputs], tuple[Any, Array]] | None
    randomised: bool = False  # whether it reads `policy_bits`
    search: str = ""  # what `replan` searches with, of `replanning.SEARCHES`; "" for no search
    optimistic: bool = False  # whether `replan` reads `ReplanInputs.optimistic`


class Rule(NamedTuple):
    """The part of a policy that is compiled; equal rules share a program."""

    router: Router
    controller: Controller
    sample: str  # contexts a replan sees: "recent" ones or a uniform "reservoir"
    window: int  # how many


class PolicyParams(flax.struct.PyTreeNode):
    """The part of a policy that is data."""

    router: Any  # routers.RouterParams
    controller: Any  # constants of the controller, () where it has none
    planned_switching: Array | float  # [], factor of the switching costs inside replans, 0 or 1


class LaneInputs(flax.struct.PyTreeNode):
    """What is given to one lane: costs, sizes and the measured latencies."""

    paging_cost: Array  # [N], units of utility
    switch_cost: Array  # [N], units of utility
    paging_ms: Array  # [N], mean milliseconds
    size: Array  # [N], relative sizes, 1 where all are equal
    cache_slots: Array  # [] int32
    active: Array  # [N] bool, False for adapters that only fill up a shape
    num_features: Array  # [] int32, features that do not fill up a shape
    samples_ms: Array  # [N, S] float32, measured latencies, S = 0 for none
    sample_count: Array  # [N] int32, how many of the S are measured
    counted: Array  # [] bool, False for a copy that only fills up a tile: it need not be served
    room: Room | None = None  # what limits the set where sizes differ, in place of the slots


class LaneState(flax.struct.PyTreeNode):
    """Everything that one lane carries from round to round."""

    router: RouterState
    controller: Any
    resident: Array  # [N] bool, the set for the next round
    pending_loads: Array  # [N] bool, loads of a replan, booked to the next round
    sample: Array  # [W, d], recent contexts or the reservoir, as the rule says
    backlog_ms: Array  # [], loads under way when the last request was served, timed streams


class Decisions(NamedTuple):
    """What a lane did in `n` rounds."""

    adapter: Array  # [n] int32
    forced: Array  # [n] bool
    resident: Array  # [n, N] bool, the set while the round was served
    switch_cost: Array  # [n], units of utility, booked to the round
    switch_ms: Array  # [n], latency of loads that no request had paid for
    loads: Array  # [n] int32, entries into the set booked to the round


class ChunkClock(NamedTuple):
    """The slow timescale within a chunk of `n` rounds; shared by all lanes of a call.

    NumPy arrays on the host, JAX arrays inside a compiled call.
    """

    first_round: Any  # [] int32, rounds served before the chunk
    num_segments: Any  # [] int32
    stop: Any  # [n+1] int32, rounds of the chunk served when the segment ends
    action: Any  # [n+1] int32, at its end: 0 nothing, 1 refresh, 2 refresh and replan
    epoch: Any  # [n+1] int32, epoch that the segment belongs to
    amortised_rounds: Any  # [n+1] float32, for the replan at its end
    interval: Any  # [n] int32, interval between curve marks, -1 past the horizon


class Environment(NamedTuple):
    """A source of requests: a pure function of a stream key and the block of rounds.

    `instance` draws what is fixed for a seed, `rounds` the `BLOCK` rounds of a block.
    Equal environments compare equal and share compiled programs.
    """

    name: str
    instance: Callable[..., Any]  # (key, params, *, active, features) -> instance
    rounds: Callable[..., Rounds]  # (key, params, instance, block) -> Rounds
    binary_reward: bool  # rewards are floor(utility + noise), 0 or 1
    independent: bool  # contexts are independent draws: no hindsight in the oracle
    num_clusters: int
    num_segments: int
    source: str = ""  # digest of the data that it replays, "" where it is synthetic
