"""Which adapters are trained: ten for one domain, four for two, one for all.

Adapter `i` has rank 8, 16 or 32 in turn, as the table of measured load times gives adapter `i`
(`polar_jax.io.qwen_paging_table`), so the two go together.
"""

from collections.abc import Sequence
from typing import NamedTuple

RANKS = (8, 16, 32)
# Neighbouring subjects, where one adapter may well stand in for two.
PAIRS = (
    ("banking", "credit_cards"),
    ("auto_and_commute", "travel"),
    ("kitchen_and_dining", "home"),
    ("small_talk", "meta"),
)


class Member(NamedTuple):
    """One adapter of the library, before it is trained."""

    name: str  # domains and rank, as the replay names it and its folder is called
    domains: tuple[str, ...]  # whose training prompts it sees
    rank: int


def members(domains: Sequence[str]) -> tuple[Member, ...]:
    """The library for ten domains.

    Args:
      domains: names of CLINC150's domains, in the order of its file.

    Returns:
      15 adapters: one per domain, one per pair of `PAIRS`, the generalist.
    """
    sets: list[tuple[str, ...]] = [(name,) for name in domains]
    sets += [*PAIRS, tuple(domains)]
    ranks = [RANKS[i % len(RANKS)] for i in range(len(sets))]
    return tuple(
        Member(f"{'generalist' if len(of) > 2 else '+'.join(of)}-r{rank}", tuple(of), rank)
        for of, rank in zip(sets, ranks, strict=True)
    )
