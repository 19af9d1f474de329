"""Named policies: POLAR, POLAR+, POLAR-A, POLAR-E, and the baselines they are compared with.

A policy is a composition of a router and a controller (`rule`, what is compiled) with
its constants and schedule (data). Source of POLAR and POLAR+: arXiv:2604.16583; what
departs from it is in `docs/deviations.md`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polar_jax import (
    capacity,
    checks,
    controllers,
    draws,
    epochs,
    eviction,
    experts,
    online_submodular,
    problems,
    replanning,
    routers,
)
from polar_jax.problems import Problem
from polar_jax.types import Controller, PolicyParams, Router, Rule


@dataclasses.dataclass(frozen=True)
class Settings:
    """Constants of the policies, with the defaults of `docs/model.md`, "Defaults".

    Attributes:
      alpha: confidence factor of the router, units of utility.
      ridge: regularisation, at least 1e-6.
      beta: "constant" (`alpha`) or "theory".
      sigma: sub-Gaussian constant of the noise, read by "theory".
      delta: failure probability, read by "theory".
      theta_bound: bound on the norm of every theta, read by "theory".
      epoch_length: epoch of `polar`, rounds; None is `ceil(sqrt(T))`.
      first_epoch: first epoch of the doubling policies, rounds.
      switching_term: whether replans count the cost of loads.
      amortised_epochs: loads are amortised over this many next epochs.
      search: search of `polar`'s replans.
      search_plus: search of `polar_plus`'s replans.
      sample: contexts a replan sees, "recent" or "reservoir" (uniform).
      window: how many, in [1, 65536]; a reservoir has 512.
      quota_scale: kappa of the forced exploration of POLAR+, POLAR-A and POLAR-E.
      value_half_life: half-life of POLAR-A's residency values, requests.
      margin: POLAR-E explores adapters this close to the best index, units of utility.
      value_beta_max: largest beta that POLAR-E's virtual caches reckon with, units of utility.
      expert_half_lives: half-lives of POLAR-E's value experts, shortest first, requests.
      score_half_life: half-life of POLAR-E's scores of the experts at first, requests.
      score_growth: the half-life is at least this share of the requests so far.
      epsilon: probability of a uniform choice of `epsilon_greedy`.
      thompson_scale: scale of `lin_ts`; None is `alpha`.
      use_half_life: half-life of `fastlibra`'s use probabilities, requests.
      lecar_learning_rate: of `lecar`'s two weights.
      lecar_discount: how much a regret `K` requests after the eviction counts, in (0, 1].
      hedge_scale: factor of `polar_oexp`'s rate; 1 is the proven one.
    """

    alpha: float = 0.5
    ridge: float = 1.0
    beta: str = "constant"
    sigma: float = 0.1
    delta: float = 0.05
    theta_bound: float = 1.0
    epoch_length: int | None = None
    first_epoch: int = 64
    switching_term: bool = True
    amortised_epochs: float = 4.0
    search: str = "greedy"
    search_plus: str = "exact"
    sample: str = "recent"
    window: int = draws.RESERVOIR_SLOTS
    quota_scale: float = 1.0
    value_half_life: float = 100.0
    margin: float = 0.2
    value_beta_max: float = 0.5
    expert_half_lives: tuple[float, ...] = (30.0, 300.0, 3000.0)
    score_half_life: float = 500.0
    score_growth: float = 0.125
    epsilon: float = 0.05
    thompson_scale: float | None = None
    use_half_life: float = 100.0
    lecar_learning_rate: float = 0.45
    lecar_discount: float = 0.005
    hedge_scale: float = 1.0

    def __post_init__(self) -> None:
        for label in ("alpha", "sigma", "theta_bound", "quota_scale", "score_growth"):
            checks.finite_at_least(label, getattr(self, label), 0.0)
        checks.between("ridge", self.ridge, checks.MIN_RIDGE, math.inf)
        for label in ("value_half_life", "score_half_life", "amortised_epochs", "use_half_life"):
            checks.finite_at_least(label, getattr(self, label), 0.0, above=True)
        for label in ("margin", "value_beta_max", "hedge_scale"):
            checks.finite_at_least(label, getattr(self, label), 0.0)
        checks.finite_at_least("lecar_learning_rate", self.lecar_learning_rate, 0.0)
        checks.finite_at_least("lecar_discount", self.lecar_discount, 0.0, above=True)
        checks.between("lecar_discount", self.lecar_discount, 0.0, 1.0)
        if self.thompson_scale is not None:
            checks.finite_at_least("thompson_scale", self.thompson_scale, 0.0)
        checks.finite_at_least("delta", self.delta, 0.0, above=True)
        checks.between("epsilon", self.epsilon, 0.0, 1.0)
        checks.at_least("first_epoch", self.first_epoch, 1)
        if self.epoch_length is not None:
            checks.at_least("epoch_length", self.epoch_length, 1)
        checks.one_of("beta", self.beta, routers.BETAS)
        checks.one_of("sample", self.sample, ("recent", "reservoir"))
        checks.between("window", self.window, 1, checks.MAX_WINDOW, whole=True)
        if self.sample == "reservoir" and self.window != draws.RESERVOIR_SLOTS:
            raise ValueError(
                f"a reservoir has window = {draws.RESERVOIR_SLOTS}, got {self.window}."
            )
        for label in ("search", "search_plus"):
            checks.one_of(label, getattr(self, label), replanning.SEARCHES)
        if not self.expert_half_lives:
            raise ValueError("expert_half_lives must hold at least one half-life, got none.")
        for half_life in self.expert_half_lives:
            checks.finite_at_least("expert_half_lives", half_life, 0.0, above=True)


class Policy(NamedTuple):
    """A named policy, ready to run on one problem size."""

    name: str
    problem: Problem
    rule: Rule
    params: PolicyParams
    schedule: epochs.Schedule
    quotas: np.ndarray  # [M] int32, exploration quota of each epoch
    first_set: str  # "first", "none", "all" or "oracle"


def _router_params(settings: Settings, *, cost_weight: float = 1.0) -> routers.RouterParams:
    scale = settings.alpha if settings.thompson_scale is None else settings.thompson_scale
    values = {
        "alpha": settings.alpha,
        "ridge": settings.ridge,
        "sigma": settings.sigma,
        "delta": settings.delta,
        "theta_bound": settings.theta_bound,
        "cost_weight": cost_weight,
        "margin": settings.margin,
        "epsilon": settings.epsilon,
        "thompson_scale": scale,
    }
    return routers.RouterParams(**{name: float(value) for name, value in values.items()})


def _decay(half_life: float) -> float:
    return 2.0 ** (-1.0 / half_life)


def _compose(
    name: str,
    problem: Problem,
    settings: Settings,
    *,
    router: Router | None = None,
    controller: Controller | None = None,
    controller_params: Any = (),
    cost_weight: float = 1.0,
    quota_scale: float = 0.0,
    ends: np.ndarray | None = None,
    first_set: str = "first",
) -> Policy:
    """Joins parts; without `ends` the epochs double and nothing is replanned at them."""
    doubling = ends is None
    if ends is None:
        ends = epochs.doubling_epoch_ends(problem.horizon, settings.first_epoch)
    controller = controller or controllers.fixed()
    replans = controller.replan is not None
    quotas = epochs.exploration_quotas(
        len(ends) + 1 if quota_scale > 0.0 else 1,
        scale=quota_scale,
        cache_slots=problem.cache_slots,
        first_epoch=settings.first_epoch,
        num_adapters=problem.num_adapters,
    )
    used_ends = ends if replans or quota_scale > 0.0 else ends[:0]
    return Policy(
        name=name,
        problem=problem,
        rule=Rule(
            router=router or routers.linucb(beta=settings.beta),
            controller=controller,
            sample=settings.sample if replans else "recent",
            window=settings.window if replans else draws.RESERVOIR_SLOTS,
        ),
        params=PolicyParams(
            router=_router_params(settings, cost_weight=cost_weight),
            controller=controller_params,
            planned_switching=float(settings.switching_term),
        ),
        schedule=epochs.schedule(
            problem.horizon,
            used_ends,
            doubling=doubling,
            replan=replans,
            amortised_epochs=settings.amortised_epochs,
        ),
        quotas=quotas,
        first_set=first_set,
    )


def _replanner(search: str, *, optimistic: bool) -> Controller:
    return controllers.epoch(
        replanning.replanner(search, optimistic=optimistic), search=search, optimistic=optimistic
    )


def _fixed_epoch(problem: Problem, settings: Settings) -> int:
    return settings.epoch_length or math.ceil(math.sqrt(problem.horizon))


def polar(problem: Problem, settings: Settings, *, name: str = "polar") -> Policy:
    """POLAR (arXiv:2604.16583): cache-aware LinUCB and greedy replans on fixed epochs."""
    return _compose(
        name,
        problem,
        settings,
        controller=_replanner(settings.search, optimistic=True),
        ends=epochs.fixed_epoch_ends(problem.horizon, _fixed_epoch(problem, settings)),
    )


def polar_oexp(problem: Problem, settings: Settings, *, name: str = "polar_oexp") -> Policy:
    """Online submodular maximisation (Streeter and Golovin 2008) on POLAR's fixed epochs."""
    length = _fixed_epoch(problem, settings)
    rate = online_submodular.hedge_rate(
        problem.num_adapters, problem.cache_slots, problem.horizon, length
    )
    return _compose(
        name,
        problem,
        settings,
        controller=online_submodular.online_submodular(),
        controller_params=online_submodular.OnlineParams(
            rate=settings.hedge_scale * rate,
            beta_max=settings.value_beta_max,
        ),
        ends=epochs.fixed_epoch_ends(problem.horizon, length),
    )


def polar_plus(
    problem: Problem, settings: Settings, *, name: str = "polar_plus", forced: bool = True
) -> Policy:
    """POLAR+ (arXiv:2604.16583): doubling epochs, forced exploration, exact replans."""
    return _compose(
        name,
        problem,
        settings,
        router=routers.linucb(exploration="quota", beta=settings.beta),
        controller=_replanner(settings.search_plus, optimistic=False),
        quota_scale=settings.quota_scale if forced else 0.0,
        ends=None,
    )


def polar_admit(problem: Problem, settings: Settings, *, name: str = "polar_admit") -> Policy:
    """POLAR-A: POLAR+'s router; a miss is admitted by decayed residency values."""
    return _compose(
        name,
        problem,
        settings,
        router=routers.linucb(exploration="quota", beta=settings.beta),
        controller=controllers.residency_value(),
        controller_params=controllers.AdmissionParams(decay=_decay(settings.value_half_life)),
        quota_scale=settings.quota_scale,
    )


def polar_experts(
    problem: Problem,
    settings: Settings,
    *,
    name: str = "polar_experts",
    router: Router | None = None,
    forced: bool = True,
    cost_weight: float = 1.0,
) -> Policy:
    """POLAR-E: virtual caches compete, the real one follows the best; rent or buy.

    The policy we want people to use. Other routers, no forced exploration and a
    cost-blind index are its ablations.
    """
    decays = [_decay(half_life) for half_life in settings.expert_half_lives]
    return _compose(
        name,
        problem,
        settings,
        router=router or routers.linucb(exploration="relevant", beta=settings.beta),
        controller=experts.experts(num_values=len(decays)),
        controller_params=experts.ExpertParams(
            value_decay=np.asarray(decays),
            score_half_life=settings.score_half_life,
            score_growth=settings.score_growth,
            beta_max=settings.value_beta_max,
        ),
        cost_weight=cost_weight,
        quota_scale=settings.quota_scale if forced else 0.0,
    )


def reactive(
    problem: Problem,
    settings: Settings,
    *,
    name: str,
    controller: Controller,
    controller_params: Any = (),
) -> Policy:
    """A cache that reacts to misses (LRU, ARC, Landlord, ...) under cache-aware LinUCB."""
    return _compose(
        name, problem, settings, controller=controller, controller_params=controller_params
    )


def _lecar(problem: Problem, settings: Settings) -> Policy:
    params = eviction.LecarParams(
        learning_rate=settings.lecar_learning_rate, discount=settings.lecar_discount
    )
    return reactive(
        problem, settings, name="lecar", controller=eviction.lecar(), controller_params=params
    )


def _fastlibra(problem: Problem, settings: Settings) -> Policy:
    params = eviction.FastLibraParams(decay=_decay(settings.use_half_life))
    return reactive(
        problem,
        settings,
        name="fastlibra",
        controller=eviction.fastlibra(),
        controller_params=params,
    )


def held(
    problem: Problem,
    settings: Settings,
    *,
    name: str,
    first_set: str,
    router: Router | None = None,
) -> Policy:
    """A set that never changes, under cache-aware LinUCB unless said otherwise."""
    return _compose(name, problem, settings, router=router, first_set=first_set)


_BUILDERS: dict[str, Callable[[Problem, Settings], Policy]] = {
    "polar": polar,
    "polar_plus": polar_plus,
    "polar_admit": polar_admit,
    "polar_experts": polar_experts,
    "lru": lambda p, s: reactive(p, s, name="lru", controller=controllers.lru()),
    "lfu": lambda p, s: reactive(p, s, name="lfu", controller=controllers.lfu()),
    "gdsf": lambda p, s: reactive(p, s, name="gdsf", controller=controllers.gdsf()),
    "landlord": lambda p, s: reactive(p, s, name="landlord", controller=eviction.landlord()),
    "arc": lambda p, s: reactive(p, s, name="arc", controller=eviction.arc()),
    "lecar": _lecar,
    "fastlibra": _fastlibra,
    "polar_oexp": polar_oexp,
    "static": lambda p, s: held(p, s, name="static", first_set="first"),
    "no_cache": lambda p, s: held(p, s, name="no_cache", first_set="none"),
    "full_cache": lambda p, s: held(p, s, name="full_cache", first_set="all"),
    "oracle_cache": lambda p, s: held(p, s, name="oracle_cache", first_set="oracle"),
    "oracle": lambda p, s: held(p, s, name="oracle", first_set="oracle", router=routers.perfect()),
    "cost_blind": lambda p, s: polar_experts(p, s, name="cost_blind", cost_weight=0.0),
    "no_forced": lambda p, s: polar_experts(p, s, name="no_forced", forced=False),
    "polar_plus_no_forced": lambda p, s: polar_plus(
        p, s, name="polar_plus_no_forced", forced=False
    ),
    "epsilon_greedy": lambda p, s: polar_experts(
        p, s, name="epsilon_greedy", router=routers.epsilon_greedy(beta=s.beta), forced=False
    ),
    "lin_ts": lambda p, s: polar_experts(
        p, s, name="lin_ts", router=routers.linear_thompson(beta=s.beta), forced=False
    ),
    "random": lambda p, s: polar_experts(
        p, s, name="random", router=routers.uniform_random(beta=s.beta), forced=False
    ),
}
NAMES = tuple(_BUILDERS)
# Their rules, and the search's bound, are for a number of adapters.
SLOTS_ONLY = ("arc", "lecar", "polar_oexp")
SIZED = tuple(name for name in NAMES if name not in SLOTS_ONLY)
# Policies that know what no server can know; they are excluded from "best policy".
ORACLES = ("oracle", "oracle_cache", "full_cache")


def policy(
    name: str,
    *,
    num_adapters: int,
    cache_slots: int,
    context_dim: int,
    horizon: int,
    memory: capacity.Memory | None = None,
    settings: Settings | None = None,
) -> Policy:
    """A named policy for one problem size.

    Args:
      name: one of `NAMES`.
      num_adapters: `N`, at least 1.
      cache_slots: `K`, in `[0, N]`.
      context_dim: `d`, at least 1.
      horizon: `T`, in `[1, 2^31 - 1]`.
      memory: sizes and capacity in place of slots, as `sized_problem` has them; `cache_slots` is
        then how many adapters fit at once at most.
      settings: constants; defaults where None.

    Returns:
      The policy.

    Raises:
      ValueError: for an unknown name, a size outside its range, or a policy or a search that
        needs slots where adapters differ in size.
    """
    checks.one_of("policy", name, NAMES)
    checks.at_least("num_adapters", num_adapters, 1)
    checks.at_least("context_dim", context_dim, 1)
    checks.at_least("horizon", horizon, 1)
    if not 0 <= cache_slots <= num_adapters:
        raise ValueError(
            f"cache_slots must be in [0, num_adapters={num_adapters}], got {cache_slots}."
        )
    problem = Problem(num_adapters, cache_slots, context_dim, horizon, memory)
    own = settings or Settings()
    searches = {"polar": own.search, "polar_plus": own.search_plus}
    search = searches.get(name.removesuffix("_no_forced"), "")
    problems.check_memory(problem, name, search, counting_slots=SLOTS_ONLY, others=SIZED)
    return _BUILDERS[name](problem, own)
