"""Sweeps on clusters: a scheduler that is there carries the shards, Slurm or Ray.

The unit of work stays the sweep's shard: it is done when its file is there, and its bits are
those of a run on one machine. What was handed to the scheduler is in `OUT/cluster`
(`journal`), which any login node reads.
"""
