"""Folders of PEFT adapters as paging tables, and milliseconds from bytes."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import io
from polar_jax.io import peft, safetensors
from polar_jax.io.safetensors import TensorSpec

CONFIG = {"peft_type": "LORA", "r": 8, "target_modules": ["v_proj", "q_proj"], "lora_alpha": 16}


def adapter(folder: pathlib.Path, size: int = 10, config: object = CONFIG) -> pathlib.Path:
    """Writes an adapter of one tensor of `size` bytes."""
    folder.mkdir(parents=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / peft.CONFIG_FILE).write_text(text)
    with open(folder / peft.WEIGHTS_FILE, "wb") as file:
        list(safetensors.write(file, [TensorSpec("a", (size,), "U8")], [bytes(size)]))
    return folder


def test_a_library_becomes_a_table_by_its_sizes_in_natural_order(tmp_path: pathlib.Path) -> None:
    for name, size in (("x-r16", 3_000), ("x-r8", 1_000)):
        adapter(tmp_path / name, size)
    (tmp_path / "notes.txt").write_text("no adapter")
    (tmp_path / ".partial-1-x").mkdir()
    (tmp_path / "checkpoints").mkdir()
    model = io.transfer_model(overhead_ms=0.5, gb_per_s=0.001)
    table = io.read_peft_folder(tmp_path, model, tier="disk")
    assert table.adapters == ("x-r8", "x-r16")
    assert table.size_bytes is not None
    assert table.size_bytes.tolist() == [1_000, 3_000]
    assert table.mean_ms.tolist() == pytest.approx([1.5, 3.5])
    assert (table.samples_ms, table.tier) == (None, "disk")


def test_an_adapter_tells_its_rank_targets_and_base(tmp_path: pathlib.Path) -> None:
    config = {**CONFIG, "base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct"}
    folder = adapter(tmp_path / "one", 10, config)
    one = io.read_peft_adapter(folder)
    assert (one.name, one.rank, one.targets) == ("one", 8, ("q_proj", "v_proj"))
    assert (one.base_model, one.size_bytes) == ("Qwen/Qwen2.5-7B-Instruct", 10)
    assert [found.name for found in io.list_peft_adapters(folder)] == ["one"]
    pattern = adapter(tmp_path / "two", 10, {**CONFIG, "target_modules": "all-linear"})
    assert io.read_peft_adapter(pattern).targets == ("all-linear",)


def test_links_to_folders_of_one_name_are_two_adapters(tmp_path: pathlib.Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for name, size in (("sql", 1_000), ("law", 3_000)):
        adapter(tmp_path / f"run-{name}" / "final", size)
        (library / name).symlink_to(tmp_path / f"run-{name}" / "final")
    found = io.list_peft_adapters(library)
    assert [(one.name, one.size_bytes) for one in found] == [("law", 3_000), ("sql", 1_000)]


BAD_CONFIGS = {
    "": "not valid JSON",
    "[": "not valid JSON",
    "[]": "must be a JSON object",
    "[" * 60_000: "nested too deeply|not valid JSON",
    json.dumps({**CONFIG, "peft_type": "LOHA"}): 'peft_type must be "LORA", got .LOHA',
    json.dumps({**CONFIG, "r": 0}): r"r must be a whole number in \[1, 65536\], got 0",
    json.dumps({**CONFIG, "r": True}): "got True",
    json.dumps({**CONFIG, "r": 8.0}): "got 8.0",
    json.dumps({**CONFIG, "r": "8"}): "got '8'",
    '{"r": 1' + "0" * 5_000 + ', "target_modules": "x"}': "adapter_config.json",
    json.dumps({"target_modules": ["q_proj"]}): "r must be .*got None",
    json.dumps({"r": 8}): "target_modules must be .*got None",
    json.dumps({**CONFIG, "target_modules": []}): r"got \[\]",
    json.dumps({**CONFIG, "target_modules": [1]}): "target_modules must be printable",
    json.dumps({**CONFIG, "target_modules": ["\n"]}): "target_modules must be printable",
    json.dumps({**CONFIG, "note": "x" * peft.MAX_CONFIG}): "at most 65536 bytes",
}


@pytest.mark.parametrize("text", BAD_CONFIGS, ids=lambda text: text[:40])
def test_configs_that_cannot_be_are_refused_in_one_line(tmp_path: pathlib.Path, text: str) -> None:
    folder = adapter(tmp_path / "one", 10, text)
    with pytest.raises(ValueError, match=BAD_CONFIGS[text]) as caught:
        io.read_peft_adapter(folder)
    assert peft.CONFIG_FILE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"must hold folders with adapter_config\.json"):
        io.list_peft_adapters(tmp_path)
    folder = adapter(tmp_path / "one")
    (folder / peft.WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        io.list_peft_adapters(tmp_path)
    (folder / peft.WEIGHTS_FILE).write_bytes(safetensors.header_bytes([], {}))
    with pytest.raises(ValueError, match="must hold weights, got none"):
        io.list_peft_adapters(tmp_path)
    with pytest.raises(NotADirectoryError):
        io.list_peft_adapters(folder / peft.CONFIG_FILE)
    with pytest.raises(FileNotFoundError):
        io.list_peft_adapters(tmp_path / "nowhere")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    overhead=st.floats(0.0, 100.0),
    gb_per_s=st.floats(0.01, 100.0),
    mib=st.lists(st.floats(0.1, 1e4), min_size=2, max_size=8, unique=True),
)
def test_a_fit_finds_the_model_that_pairs_were_made_with(
    overhead: float, gb_per_s: float, mib: list[float]
) -> None:
    made = io.transfer_model(overhead_ms=overhead, gb_per_s=gb_per_s)
    sizes = np.array(mib) * 2**20
    fitted = io.fit_transfer(sizes, made.milliseconds(sizes))
    np.testing.assert_allclose(fitted.milliseconds(sizes), made.milliseconds(sizes), rtol=1e-5)


def test_a_fit_has_the_least_squares_of_relative_errors() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([1e6, 3e6, 1e7, 4e7, 1e8])
    times = (2.0 + sizes / 1e6) * rng.uniform(0.8, 1.25, sizes.size)

    def loss(overhead: float, bytes_per_ms: float) -> float:
        model = io.TransferModel(overhead, bytes_per_ms)
        return float((((model.milliseconds(sizes) - times) / times) ** 2).sum())

    best = io.fit_transfer(sizes, times)
    for factor in (0.99, 1.01):
        assert loss(best.overhead_ms * factor, best.bytes_per_ms) > loss(*best)
        assert loss(best.overhead_ms, best.bytes_per_ms * factor) > loss(*best)
    # The line through plain squares is another one: this test can fail.
    slope, start = np.polyfit(sizes, times, 1)
    assert loss(float(start), float(1 / slope)) > loss(*best) * 1.0001


def test_a_fit_has_no_negative_figure() -> None:
    below = io.fit_transfer([1e6, 2e6], [1.0, 3.0])
    assert below.overhead_ms == 0.0
    assert 0 < below.bytes_per_ms < np.inf
    falling = io.fit_transfer([1e6, 2e6], [3.0, 1.0])
    assert falling.bytes_per_ms == np.inf
    assert falling.milliseconds([1, 10**9]).tolist() == [falling.overhead_ms] * 2


@pytest.mark.parametrize(
    ("sizes", "times", "said"),
    [
        ([1, 2], [1.0], "lists of one length"),
        ([], [], "two or more different sizes to fit a line, got 0"),
        ([5, 5], [1.0, 2.0], "two or more different sizes to fit a line, got 1"),
        ([0, 5], [1.0, 2.0], "size_bytes must be in"),
        ([1, np.nan], [1.0, 2.0], "size_bytes must be in .*got nan"),
        ([1, 2], [1.0, 0.0], r"ms must be in \(0, 1e\+09\], got 0"),
        ([1, 2], [1.0, np.inf], "ms must be in"),
    ],
)
def test_pairs_that_make_no_line_are_refused(sizes: list, times: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        io.fit_transfer(sizes, times)


@pytest.mark.parametrize(
    ("overhead", "bandwidth"), [(-1.0, 1.0), (np.nan, 1.0), (1.0, 0.0), (1.0, np.inf)]
)
def test_given_figures_out_of_range_are_refused(overhead: float, bandwidth: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        io.transfer_model(overhead_ms=overhead, gb_per_s=bandwidth)
