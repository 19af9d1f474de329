"""Load times of adapters out of the logs of serving systems; docs/serving_logs.md has the rules."""

from polar_jax.io.logs.reading import FORMATS, read_serving_log
from polar_jax.io.logs.records import TIERS, Load, ServingLog
from polar_jax.io.logs.selection import TIER_CHOICES, select, to_paging_csv, to_paging_table

__all__ = [
    "FORMATS",
    "TIERS",
    "TIER_CHOICES",
    "Load",
    "ServingLog",
    "read_serving_log",
    "select",
    "to_paging_csv",
    "to_paging_table",
]
