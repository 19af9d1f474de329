"""Which processes the plan would start on a machine's devices."""

import dataclasses
import pathlib
import re

import pytest

from polar_jax.sweep import device_layout, plan, spec

TEXT = """
[fixed]
adapters = 5
context_dim = 3
seeds = {seeds}
policies = ["lru", "static"]
horizon = 2_000
[axes]
price_per_ms = [{prices}]
"""


def made(seeds: int, prices: int, shard_seconds: float, platform: str = "cpu") -> plan.Plan:
    """A plan of so many equal cells."""
    listed = ", ".join(f"{(i + 1) / 100}" for i in range(prices))
    text = TEXT.format(seeds=seeds, prices=listed)
    asked = spec.parse(text, name="t", folder=pathlib.Path())
    return dataclasses.replace(plan.make(asked, shard_seconds=shard_seconds), platform=platform)


def test_many_small_shards_get_a_process_per_device():
    # Every shard is one cell of one tile: seven of eight devices would idle in one process.
    small = made(32, 16, 1e-3)
    assert len(small.shards) == 16
    chosen, why = device_layout.choose(small, 8)
    assert chosen == pytest.approx((8, 1, 1.0))
    # An eighth, whose last bit decides which way it is rounded.
    assert re.fullmatch(
        r"8 processes of one device each: busy 100% of the time "
        r"\(one process over all 8 devices 1[23]%\)",
        why,
    )


def test_one_large_shard_gets_one_process_over_all_devices():
    large = made(32 * 8, 1, 300.0)
    assert len(large.shards) == 1
    chosen, why = device_layout.choose(large, 8)
    assert chosen == pytest.approx((1, 8, 1.0))
    assert re.search("8 processes of one device each 1[23]%", why)


def test_between_them_processes_drive_some_devices_each():
    # Two shards of four tiles each on eight devices.
    both = made(32 * 4, 2, made(32 * 4, 1, 300.0).seconds)
    assert [len(shard.batches) for shard in both.shards] == [1, 1]
    chosen, _ = device_layout.choose(both, 8)
    assert chosen == pytest.approx((2, 4, 1.0))


@pytest.mark.parametrize(("platform", "processes"), [("cpu", 1), ("gpu", 2)])
def test_among_equals_cores_share_a_process_and_accelerators_have_their_own(platform, processes):
    equal = made(64, 16, made(64, 1, 300.0).seconds, platform)
    assert len(equal.shards) == 16
    assert device_layout.choose(equal, 2)[0].processes == processes
    assert device_layout.choose(equal, 1)[1] == "one process on the one device"
