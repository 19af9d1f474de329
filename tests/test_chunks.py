"""How many rounds a call serves: by the shape, the schedule, and how full a tile is."""

import helpers
import jax
import pytest

from polar_jax import chunks, kernels, lanes, programs


def _experiment(
    num_adapters: int = 7, dim: int = 5, horizon: int = 300, names: tuple[str, ...] = ("lru",)
) -> lanes.Experiment:
    return helpers.make_experiment(
        names, adapters=num_adapters, dim=dim, horizon=horizon, seeds=(0,)
    )


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native kernel is taken, whether it can be built here or not: nothing is served."""
    monkeypatch.setattr(kernels, "chosen", lambda platform: "native" if platform == "cpu" else "")


@pytest.mark.parametrize(
    ("busy", "rounds"),
    [(1, 16_384), (2, 16_384), (3, 8_192), (8, 4_096), (9, 2_048), (17, 1_024), (500, 1_024)],
)
@pytest.mark.usefixtures("native")
def test_runs_of_few_lanes_have_longer_chunks_whatever_their_length(busy, rounds):
    for horizon in (300, 100_000):
        exp = _experiment(horizon=horizon)
        assert chunks.chunk_rounds(exp, 32, "cpu", lanes=busy) == rounds
    assert chunks.chunk_rounds(_experiment(), 4_096, "gpu", lanes=busy) == 1_024
    assert programs.chunk_of_full_tiles(_experiment(), "cpu") == 1_024


def test_kernels_that_serve_whole_tiles_have_no_longer_chunks(monkeypatch):
    for name in ("xla", "blocked"):
        monkeypatch.setenv(kernels.VARIABLE, name)
        assert chunks.chunk_rounds(_experiment(), 32, "cpu", lanes=1) == 1_024


@pytest.mark.usefixtures("native")
def test_a_policy_that_the_native_kernel_does_not_have_keeps_calls_short_for_all():
    assert chunks.chunk_rounds(_experiment(names=("lru", "static")), 32, "cpu", lanes=1) == 16_384
    mixed = _experiment(names=("lru", "epsilon_greedy"))
    assert chunks.chunk_rounds(mixed, 32, "cpu", lanes=1) == 1_024


@pytest.mark.usefixtures("native")
def test_a_chunk_of_a_nearly_empty_tile_stays_within_its_memory():
    wide = _experiment(200, 4)
    rounds = chunks.chunk_rounds(wide, 32, "cpu", lanes=1)
    assert rounds == 2_048
    assert 32 * rounds * chunks.round_bytes(200, 4) <= chunks._CHUNK_BYTES
    assert 32 * 2 * rounds * chunks.round_bytes(200, 4) > chunks._CHUNK_BYTES


def test_a_run_has_the_chunk_of_its_lanes_and_a_sweeps_memory_that_of_its_own():
    exp = _experiment()
    native = kernels.chosen(jax.devices()[0].platform) == "native"
    own, full = (lanes._Run([exp], chunk_rounds=rounds).chunk for rounds in (None, 1_024))
    assert (own, full) == (16_384 if native else 1_024, 1_024)
    # What is kept is kept of whole tiles.
    assert lanes._Run([exp], keep=True).chunk == 1_024
    assert (lanes.memory([exp], chunk_rounds=1_024) < lanes.memory([exp])) == native
