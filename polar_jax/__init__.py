"""polar_jax: online learning for LoRA adapter caching and routing, many simulations at once.

The names below are the promise; every module can be imported too, as in
`from polar_jax import routers`. They load on first use, so that the command line can
answer `--help` at once, and can set the number of host devices before JAX starts.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polar_jax.cache_search import exact, greedy, local_search
    from polar_jax.cache_value import cache_problem
    from polar_jax.config import RunConfig
    from polar_jax.environments import environment, environment_params
    from polar_jax.experiment import run_experiment
    from polar_jax.io import qwen_paging_table, read_paging_table
    from polar_jax.lanes import Costs, Experiment, PolicyResult, Progress, Results, run
    from polar_jax.oracles import static_oracle
    from polar_jax.paging import PagingTable, make_table
    from polar_jax.policies import Policy, Settings, policy
    from polar_jax.problems import Problem, sized_problem
    from polar_jax.routers import linucb

__all__ = [
    "Costs",
    "Experiment",
    "PagingTable",
    "Policy",
    "PolicyResult",
    "Problem",
    "Progress",
    "Results",
    "RunConfig",
    "Settings",
    "cache_problem",
    "environment",
    "environment_params",
    "exact",
    "greedy",
    "linucb",
    "local_search",
    "make_table",
    "policy",
    "qwen_paging_table",
    "read_paging_table",
    "run",
    "run_experiment",
    "sized_problem",
    "static_oracle",
]

_HOMES = {
    "cache_search": ("exact", "greedy", "local_search"),
    "cache_value": ("cache_problem",),
    "config": ("RunConfig",),
    "environments": ("environment", "environment_params"),
    "experiment": ("run_experiment",),
    "io": ("qwen_paging_table", "read_paging_table"),
    "lanes": ("Costs", "Experiment", "PolicyResult", "Progress", "Results", "run"),
    "oracles": ("static_oracle",),
    "paging": ("PagingTable", "make_table"),
    "policies": ("Policy", "Settings", "policy"),
    "problems": ("Problem", "sized_problem"),
    "routers": ("linucb",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module, once."""
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(f"polar_jax.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'polar_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; "unknown" where the source runs without being installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("polar_jax")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
