"""What theory says of exponents, and the premises it needs; `docs/scaling.md` has the table."""

from typing import NamedTuple

_FIXED_SETS = ("static", "no_cache")
# Policies whose router is LinUCB on net utilities, with or without forced exploration; not
# `cost_blind`, whose index leaves the costs out.
_LINUCB = (
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
    "no_forced",
    "polar_plus_no_forced",
)
_BOUND = "upper bound d sqrt(N T) + sqrt(K T) up to logarithms (arXiv:2604.16583)"
_UNPROVEN = "; for beta = theory, and these runs have a constant alpha"
_LEARNING = (
    "upper bound d sqrt(N T) up to logarithms, LinUCB with beta = theory on linear utilities"
)
_QUOTA = "at most of the order of sqrt(K T) forced rounds, by construction"


class Premises(NamedTuple):
    """What theory has to know of a group of rows."""

    beta: str = "theory"
    linear: bool = True  # utilities are linear in the context, as the routers assume
    fewer: bool = True  # K < N at every point
    costly: bool = True  # paging costs something at every point


def exponent(axis: str, policy: str, figure: str, premises: Premises) -> tuple[float, str] | None:
    """What theory says of an exponent on streams of independent requests.

    Args:
      axis: a key of `exponents.AXES`.
      policy: name of the policy.
      figure: one of `exponents.FIGURES`.
      premises: what is known of the rows.

    Returns:
      The exponent and in words where it comes from, or None where nothing is known or a
      premise fails. Most are exponents of upper bounds, which a measured one may stay below.
    """
    if figure == "regret_forced" and policy in ("polar_plus", "polar_admit"):
        return (0.5, _QUOTA) if axis in ("horizon", "cache_slots") else None
    # Where everything fits or paging is free, a set that stays loses nothing.
    if axis == "horizon" and premises.fewer and premises.costly:
        if figure == "regret_caching" and policy in _FIXED_SETS:
            return 1.0, "a set that stays loses a constant per request"
        if figure == "regret" and policy in _FIXED_SETS:
            return 1.0, "the caching part, linear in T, outgrows the others"
        if figure == "loss_to_full" and policy != "full_cache":
            return 1.0, "K < N slots lose a constant per request to full memory"
    if not premises.linear:
        return None
    proven = premises.beta == "theory"
    if figure == "regret" and policy == "polar_plus":
        exponents = {"horizon": 0.5, "num_adapters": 0.5, "context_dim": 1.0, "cache_slots": 0.5}
        words = _BOUND if proven else _BOUND + _UNPROVEN
        slots = axis == "cache_slots"
        return exponents[
            axis
        ], f"at most: 0 where the other term leads; {words}" if slots else words
    learnt = figure == "regret_routing" or (figure, policy) == ("loss_to_full", "full_cache")
    if learnt and policy in _LINUCB and proven:
        exponents = {"horizon": 0.5, "num_adapters": 0.5, "context_dim": 1.0}
        return (exponents[axis], _LEARNING) if axis in exponents else None
    return None
