"""The matrix that ships with the package: whole, without texts, and what the docs say it is."""

import hashlib
import importlib.resources
import json
import pathlib

import numpy as np
import pytest
import small_clinc

from sweeps.real_adapters import library, replay

FILE = importlib.resources.files("polar_jax") / "data" / replay.FILE
DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def shipped() -> replay.Replay:
    """The file's arrays."""
    with FILE.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return replay.Replay(**dict(arrays))


def test_it_is_small_and_holds_numbers_and_names_alone(shipped):
    assert len(FILE.read_bytes()) < 2_000_000
    texts = {name for name, array in shipped._asdict().items() if array.dtype.kind not in "fiu"}
    assert texts == {"domain_names", "intent_names", "adapters"}
    # Names, not prompts: as many as there are domains, intents and adapters.
    assert [len(getattr(shipped, name)) for name in sorted(texts)] == [15, 10, 150]
    assert not any(" " in str(name) for kind in texts for name in getattr(shipped, kind))


def test_its_shapes_and_ranges_are_what_a_replay_needs(shipped):
    prompts = 4_500
    assert shipped.contexts.shape == (prompts, 10)
    for name in ("utilities", "log_probability", "correct"):
        assert getattr(shipped, name).shape == (prompts, 15)
    replay.check(shipped)
    assert shipped.utilities.min() >= 0
    assert shipped.utilities.max() <= 1
    assert np.linalg.norm(shipped.contexts, axis=1).max() <= 1 + 1e-6
    np.testing.assert_allclose(np.exp(shipped.log_probability), shipped.utilities, atol=1e-6)
    assert sorted(shipped.test_rows) == list(range(prompts))
    assert np.bincount(shipped.domains).tolist() == [450] * 10
    assert np.bincount(shipped.intents).tolist() == [30] * 150
    np.testing.assert_array_equal(shipped.domains, shipped.intents // 15)
    members = library.members(small_clinc.DOMAINS)
    assert [str(name) for name in shipped.adapters] == [one.name for one in members]
    assert shipped.ranks.tolist() == [one.rank for one in members]
    assert [str(name) for name in shipped.domain_names] == list(small_clinc.DOMAINS)


def test_rows_are_in_no_order_of_subjects(shipped):
    # Independent draws repeat a domain with probability 0.1; sorted rows would nearly always.
    repeats = (shipped.domains[1:] == shipped.domains[:-1]).mean()
    assert abs(repeats - 0.1) < 0.02
    by_file = shipped.domains[np.argsort(shipped.test_rows)]
    assert (by_file[1:] == by_file[:-1]).mean() > 0.9


def test_a_probability_above_one_half_is_the_right_answer(shipped):
    sure = shipped.utilities > 0.5 + 1e-6
    assert sure.any()
    assert shipped.correct[sure].all()
    # Among 150 answers the likeliest has at least 1/150.
    assert shipped.utilities[shipped.correct == 1].min() >= 1 / 150 - 1e-6


def test_experts_are_best_inside_and_a_router_has_something_to_gain(shipped):
    found = replay.figures(shipped)
    for row in found["adapters"][:14]:
        assert row["accuracy_inside"] > row["accuracy_outside"] + 0.05, row["adapter"]
    order = ("base", "best_single", "linear_router", "best_per_domain", "oracle")
    utility = [found[name]["utility"] for name in order]
    assert utility == sorted(utility)
    assert found["linear_router"]["utility"] > found["best_single"]["utility"] + 0.01


def test_the_docs_have_the_figures_and_the_hash_of_this_file(shipped):
    page = (DOCS / "real_adapters.md").read_text("utf-8")
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in page
    assert replay.as_markdown(json.loads(json.dumps(replay.figures(shipped)))).strip() in page
