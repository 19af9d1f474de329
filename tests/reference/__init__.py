"""Float64 NumPy implementation of the specification, written apart from the engine it judges."""

from .data import (
    ReferenceLane,
    ReferenceProblem,
    ReferenceRounds,
    ReferenceSettings,
    Replay,
)
from .lanes import run_lane
from .metrics import best_static_set, lane_metrics
from .replay import replay_lane
from .routing import POLICIES
from .search import distorted_greedy, exact, greedy, local_search, objective, top_k

__all__ = [
    "POLICIES",
    "ReferenceLane",
    "ReferenceProblem",
    "ReferenceRounds",
    "ReferenceSettings",
    "Replay",
    "best_static_set",
    "distorted_greedy",
    "exact",
    "greedy",
    "lane_metrics",
    "local_search",
    "objective",
    "replay_lane",
    "run_lane",
    "top_k",
]
