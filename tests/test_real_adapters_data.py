"""What surrounds the training of adapters: data, batches, head, contexts, the replay's file."""

import gzip
import hashlib
import io
import itertools
import json
import zipfile

import jax
import numpy as np
import pytest
import small_clinc

from sweeps.real_adapters import batches, clinc, contexts, head, library, replay


def test_clinc_is_read_plain_and_gzipped_and_without_prompts_of_no_intent(tmp_path):
    plain = clinc.read(small_clinc.write(tmp_path / "plain"))
    packed = tmp_path / "packed"
    packed.mkdir()
    for ours, theirs in (
        ("clinc150_data_full.json.gz", "data_full.json"),
        ("clinc150_domains.json.gz", "domains.json"),
    ):
        (packed / ours).write_bytes(gzip.compress((tmp_path / "plain" / theirs).read_bytes()))
    again = clinc.read(packed)
    assert plain.sha256 == again.sha256
    assert plain.test.prompts == again.test.prompts
    assert len(plain.intents) == 20
    assert "w1 w2" not in plain.test.prompts
    for split in (plain.train, plain.val, plain.test):
        assert len(split.prompts) == 120
        np.testing.assert_array_equal(split.domain, split.intent // 2)


def test_a_small_part_has_every_intent(tmp_path):
    data = clinc.read(small_clinc.write(tmp_path))
    part = clinc.first(data, 2)
    assert np.bincount(part.test.intent).tolist() == [2] * 20
    assert set(part.test.prompts) <= set(data.test.prompts)


def without(tree: dict, key: str) -> dict:
    """A copy that lacks a key."""
    return {name: value for name, value in tree.items() if name != key}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("domains.json", lambda t: without(t, "travel"), "must name CLINC150's 10 domains"),
        ("domains.json", lambda t: without(t, "travel") | {"x": ["y"]}, "got 10: banking"),
        ("domains.json", lambda t: t | {"work": []}, "every domain must have intents"),
        ("domains.json", lambda t: t | {"work": t["meta"]}, "every intent one domain"),
        ("domains.json", lambda t: t | {"work": "text"}, r"must be an object \{domain"),
        ("domains.json", lambda t: [t], r"must be an object \{domain"),
        ("data_full.json", lambda t: without(t, "val"), r"must hold 'val', a list of \[prompt"),
        ("data_full.json", lambda t: t | {"test": [["prompt"]]}, "must hold 'test'"),
        ("data_full.json", lambda t: t | {"test": [["a", 3]]}, "must hold 'test'"),
        ("data_full.json", lambda t: t | {"train": t["train"][6:]}, r"missing \['banking_0'\]"),
        (
            "data_full.json",
            lambda t: t | {"val": [*t["val"], ["w1", "new"]]},
            r"the 20 intents .* unknown \['new'\]",
        ),
    ],
)
def test_files_that_are_not_clincs_are_refused(tmp_path, file, change, message):
    small_clinc.write(tmp_path)
    tree = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(change(tree)))
    with pytest.raises(ValueError, match=message) as caught:
        clinc.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe", b""])
def test_damaged_files_are_refused(tmp_path, damage):
    small_clinc.write(tmp_path)
    (tmp_path / "data_full.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"data_full.json' must be JSON, got"):
        clinc.read(tmp_path)
    (tmp_path / "data_full.json").unlink()
    (tmp_path / "data_full.json.gz").write_bytes(gzip.compress(b"{}")[:-9] + damage)
    with pytest.raises(ValueError, match=r"data_full.json.gz' must be a gzip file, got"):
        clinc.read(tmp_path)
    with pytest.raises(ValueError, match=r"--clinc must be a folder .*, got '.*/nowhere'"):
        clinc.read(tmp_path / "nowhere")


def test_the_library_matches_the_table_of_load_times():
    from polar_jax import io as polar_io

    members = library.members(small_clinc.DOMAINS)
    names = polar_io.qwen_paging_table(15).adapters
    assert [f"-r{one.rank}-" in name for one, name in zip(members, names, strict=True)] == [
        True
    ] * 15
    assert [len(one.domains) for one in members] == [1] * 10 + [2] * 4 + [10]
    assert [members[i].name for i in (0, 10, 14)] == [
        "banking-r8",
        "banking+credit_cards-r16",
        "generalist-r32",
    ]


def random_tokens(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 2 to 40 tokens."""
    random = np.random.default_rng(seed)
    return [[7] * int(n) for n in random.integers(2, 41, count)]


def test_every_pass_of_training_sees_every_prompt_of_the_pool_once():
    tokens, pool = random_tokens(60), np.arange(3, 53)
    found = list(batches.for_training(tokens, pool, size=8, steps=40, seed=1))
    assert len(found) == 40
    lengths = np.array([len(one) for one in tokens])
    per_pass = sum(
        -(-int(((lengths[pool] <= b) & (lengths[pool] > a)).sum()) // 8)
        for a, b in itertools.pairwise((0, *batches.LENGTHS))
    )
    for start in range(0, 40 - per_pass, per_pass):
        rows = np.concatenate([batch.row for batch in found[start : start + per_pass]])
        assert sorted(rows) == pool.tolist()
    for batch in found:
        assert batch.ids.shape == batch.mask.shape
        assert batch.ids.shape[1] in batches.LENGTHS
        np.testing.assert_array_equal(batch.mask.sum(axis=1)[: batch.row.size], lengths[batch.row])
        assert (batch.mask.sum(axis=1)[batch.row.size :] == 1).all()
    again = list(batches.for_training(tokens, pool, size=8, steps=40, seed=1))
    other = list(batches.for_training(tokens, pool, size=8, steps=40, seed=2))
    assert [b.row.tolist() for b in found] == [b.row.tolist() for b in again]
    assert [b.row.tolist() for b in found] != [b.row.tolist() for b in other]


@pytest.mark.parametrize("count", [0, 1, 9])
def test_evaluation_sees_every_prompt_once(count):
    rows = [batch.row for batch in batches.in_turn(random_tokens(count), 4)]
    assert sorted(int(row) for one in rows for row in one) == list(range(count))


def test_prototypes_are_means_of_their_examples_and_the_scale_fits_the_validation():
    random = np.random.default_rng(0)
    intent = np.repeat(np.arange(4), 5)
    rows = head.example_rows(intent, 3, seed=0)
    assert np.bincount(intent[rows]).tolist() == [3] * 4
    assert head.example_rows(intent, 9, seed=0).tolist() == list(range(20))
    examples = random.standard_normal((20, 6)) + 1.5 * np.eye(4, 6)[intent]
    examples /= np.linalg.norm(examples, axis=1, keepdims=True)
    made = head.fit(examples[rows], intent[rows], examples, intent)
    expected = examples[rows[intent[rows] == 2]].mean(axis=0)
    np.testing.assert_allclose(made.prototypes[2], expected / np.linalg.norm(expected), atol=1e-6)

    def loss(scale: float) -> float:
        logits = head.logits(made._replace(scale=scale), examples)
        return -head.log_probability(logits, intent).mean()

    assert loss(made.scale) <= min(loss(made.scale - 0.5), loss(made.scale + 0.5))


def test_log_probabilities_survive_huge_logits():
    values = np.array([[1e4, 0.0], [0.0, 1e4], [0.0, 0.0]])
    found = head.log_probability(values, np.array([0, 0, 1]))
    np.testing.assert_allclose(found, [0, -1e4, -np.log(2)])


def test_domain_probabilities_are_learnt_from_what_is_given_alone():
    random = np.random.default_rng(0)
    domain = np.arange(200) % 4
    x = (random.standard_normal((200, 8)) + 3 * np.eye(4, 8)[domain]).astype(np.float32)
    with jax.numpy_dtype_promotion("standard"):
        made = contexts.fit(x[:100], domain[:100], 4, seed=0)
        again = contexts.fit(x[:100], domain[:100], 4, seed=0)
    np.testing.assert_array_equal(made.weights, again.weights)
    assert made.penalty in [pytest.approx(one) for one in contexts.PENALTIES]
    found = contexts.probabilities(made, x[100:])
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert (found.argmax(axis=1) == domain[100:]).mean() > 0.8
    # The penalty was chosen on held-out folds: noise calls for a strong one.
    with jax.numpy_dtype_promotion("standard"):
        noise = contexts.fit(x[:100], random.permutation(domain[:100]), 4, seed=0)
    assert noise.penalty == max(contexts.PENALTIES)


def small_replay() -> replay.Replay:
    """Four prompts of two domains, three adapters."""
    u = np.array([[0.9, 0.1, 0.6], [0.8, 0.2, 0.6], [0.1, 0.9, 0.6], [0.3, 0.4, 0.6]], np.float32)
    return replay.Replay(
        contexts=np.eye(2, dtype=np.float32)[[0, 0, 1, 1]],
        utilities=u,
        log_probability=np.log(u),
        correct=(u > 0.5).astype(np.uint8),
        base_log_probability=np.log(np.full(4, 0.5, np.float32)),
        base_correct=np.array([1, 0, 0, 0], np.uint8),
        test_rows=np.arange(4, dtype=np.int32),
        domains=np.array([0, 0, 1, 1], np.int32),
        intents=np.array([0, 1, 2, 2], np.int32),
        domain_names=np.array(["work", "home"]),
        intent_names=np.array(["a", "b", "c"]),
        adapters=np.array(["work-r8", "home-r16", "generalist-r32"]),
        ranks=np.array([8, 16, 32], np.int32),
    )


def test_figures_are_those_counted_by_hand():
    found = replay.figures(small_replay())
    assert found["base"] == {"utility": pytest.approx(0.5), "accuracy": 0.25}
    assert found["best_single"]["adapter"] == "generalist-r32"
    assert found["best_single"]["utility"] == pytest.approx(0.6)
    assert found["oracle"]["utility"] == pytest.approx((0.9 + 0.8 + 0.9 + 0.6) / 4)
    assert found["oracle"]["accuracy"] == 1
    assert found["best_per_domain"]["adapters"] == ["work-r8", "home-r16"]
    assert found["best_per_domain"]["utility"] == pytest.approx((0.9 + 0.8 + 0.9 + 0.4) / 4)
    work = found["adapters"][0]
    assert work["utility_inside"] == pytest.approx(0.85)
    assert work["utility_outside"] == pytest.approx(0.2)
    assert found["adapters"][2]["accuracy_outside"] is None
    assert "| `generalist-r32` | 1.000 | 1.000 |  | 0.600 | 0.600 |  |" in replay.as_markdown(found)


def test_the_best_static_set_is_the_best_of_all(monkeypatch):
    monkeypatch.setattr(replay, "SLOTS", 2)
    kept = replay.figures(small_replay())["best_static_set"]
    assert kept["adapters"] == ["work-r8", "home-r16"]
    assert kept["utility"] == pytest.approx((0.9 + 0.8 + 0.9 + 0.4) / 4)


def test_a_linear_router_finds_what_is_linear_and_not_noise():
    random = np.random.default_rng(0)
    domains = random.integers(0, 2, 400)
    u = np.where(domains[:, None] == [0, 1, 2], 0.9, 0.3) + 0.05 * random.standard_normal((400, 3))
    u[:, 2] = random.uniform(0, 1, 400)
    u = u.astype(np.float32)
    made = small_replay()._replace(
        contexts=np.eye(2, dtype=np.float32)[domains],
        utilities=u,
        correct=(u > 0.5).astype(np.uint8),
        domains=domains,
    )
    found = replay.figures(made)
    assert found["linear_router"]["utility"] == pytest.approx(0.9, abs=0.01)
    assert found["linear_r2"]["most"] > 0.95
    assert found["linear_r2"]["least"] < 0.02


def test_the_same_numbers_give_the_same_bytes_and_no_pickle(tmp_path, monkeypatch):
    arrays = small_replay()._asdict()
    digests = []
    for name, day in (("a.npz", 1_000_000_000), ("b.npz", 1_700_000_000)):
        monkeypatch.setattr("time.time", lambda day=day: day)
        replay.write(tmp_path / name, arrays)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        replay.write(tmp_path / "a.npz", {"x": np.array([{}], object)})
    # What was there is still there, and nothing else is.
    assert zipfile.is_zipfile(io.BytesIO((tmp_path / "a.npz").read_bytes()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"utilities": np.full((4, 3), np.nan, np.float32)}, "utilities must be finite, got 12"),
        ({"contexts": np.ones((4, 2), np.float32)}, "rows of contexts must add up to 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes, message):
    replay.check(small_replay())
    with pytest.raises(ValueError, match=message):
        replay.check(small_replay()._replace(**changes))
