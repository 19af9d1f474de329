"""Replay files: what is read, what is refused, and that a hostile file costs no more than its size.

Corrupted and hostile files raise nothing but a one-line `ValueError` that names the file.
"""

import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_data import made

from polar_jax.io import read_replay, real_adapters, replay_files, write_replay

FORMATS = replay_files.SUFFIXES
CORRUPTIONS = settings(derandomize=True, deadline=None, max_examples=1_000, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replays")


def arrays(**changes: Any) -> dict[str, Any]:
    """What a small npz holds; None leaves an array out."""
    rng = np.random.default_rng(0)
    held: dict[str, Any] = {
        "contexts": rng.random((40, 3)).astype(np.float32),
        "utilities": rng.random((40, 5)),
        "domains": np.arange(40) % 4,
        "adapters": np.array(["a", "b", "c", "d", "e"]),
        "order": np.arange(60) % 40,
        **changes,
    }
    return {name: value for name, value in held.items() if value is not None}


def npz(path: Path, save: Any = np.savez, **changes: Any) -> Path:
    save(path, **arrays(**changes))
    return path


def parquet(path: Path, *, metadata: dict[bytes, bytes] | None = None, **columns: Any) -> Path:
    held = arrays()
    table: dict[str, Any] = {
        "context": held["contexts"].tolist(),
        "utility": held["utilities"].tolist(),
        "domain": [f"d{i % 4}" for i in range(40)],
        **columns,
    }
    schema = {name: value for name, value in table.items() if value is not None}
    pq.write_table(pa.table(schema, metadata=metadata), path, use_dictionary=False)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read(folder, suffix):
    replay = made(700, 6, 5, 4)
    path = folder / f"written{suffix}"
    write_replay(path, replay)
    again = read_replay(path)
    np.testing.assert_array_equal(again.contexts, replay.contexts)
    np.testing.assert_array_equal(again.utilities, replay.utilities)
    np.testing.assert_array_equal(again.domains, replay.domains)
    assert (again.adapters, again.domain_names) == (replay.adapters, replay.domain_names)
    assert again.digest == replay.digest
    assert [one.name for one in folder.glob(".*")] == []


def test_parquet_rows_are_in_the_order_recorded(folder):
    order = np.random.default_rng(1).integers(0, 300, 450)
    replay = made(order=order)
    write_replay(folder / "order.parquet", replay)
    again = read_replay(folder / "order.parquet")
    np.testing.assert_array_equal(again.contexts, replay.contexts[order])
    np.testing.assert_array_equal(again.order, np.arange(450))


def test_optional_arrays_may_be_left_out_and_others_are_unread(folder):
    replay = read_replay(
        npz(folder / "few.npz", domains=None, adapters=None, order=None, extra=np.ones(3))
    )
    assert replay.domain_names == ("all",)
    assert replay.adapters[1] == "adapter-01"
    np.testing.assert_array_equal(replay.order, np.arange(40))


@pytest.mark.parametrize(
    "change",
    [
        {"contexts": np.asfortranarray(arrays()["contexts"])},
        {"contexts": arrays()["contexts"].astype(">f8")},
        {"domains": arrays()["domains"].astype(np.int32)},
    ],
)
def test_other_layouts_of_the_same_numbers_are_read(folder, change):
    plain = read_replay(npz(folder / "plain.npz"))
    other = read_replay(npz(folder / "layout.npz", **change))
    np.testing.assert_allclose(other.contexts, plain.contexts, rtol=1e-6)
    np.testing.assert_array_equal(other.domains, plain.domains)


BAD_NPZ = {
    "no contexts": ({"contexts": None}, "must hold the arrays contexts and utilities, got"),
    "pickles": ({"contexts": np.array([[{}]], dtype=object)}, "contexts must be floats of 4 or 8"),
    "text": ({"utilities": np.array([["a"]])}, "utilities must be floats of 4 or 8 bytes, got"),
    "bytes": ({"utilities": np.ones((40, 5), np.uint8)}, "utilities must be floats of 4 or 8"),
    "halves": ({"contexts": np.ones((40, 3), np.float16)}, "contexts must be floats of 4 or 8"),
    "complex": ({"utilities": np.ones((40, 5)) * 1j}, "utilities must be floats of 4 or 8"),
    "float domains": ({"domains": np.ones(40)}, "domains must be whole numbers of 4 or 8 bytes or"),
    "number names": (
        {"adapters": np.arange(5)},
        "adapters must be texts of at most 128 characters, got int64",
    ),
    "names in a table": ({"adapters": np.array([["a"]])}, "adapters must be a list of texts"),
    "cube": ({"contexts": np.ones((40, 3, 2), np.float32)}, "contexts claims shape"),
    "rows": ({"contexts": np.ones((39, 3), np.float32)}, "a row per request, got 39 and 40"),
    "order": ({"order": np.array([40])}, r"order[0] must be a request in [0, 40), got 40"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_that_cannot_be_used_is_refused_in_one_line(folder, case):
    changes, message = BAD_NPZ[case]
    path = folder / "bad.npz"
    np.savez(path, allow_pickle=True, **arrays(**changes))
    with pytest.raises(ValueError, match=r"bad\.npz") as caught:
        read_replay(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_PARQUET = {
    "no utility": ({"utility": None}, "must have columns context and utility, got"),
    "ragged": ({"context": [[1.0, 2.0]] * 39 + [[1.0, 2.0, 3.0]]}, "as many numbers in every"),
    "ragged evenly": (
        {"context": [[1.0], [1.0, 2.0, 3.0]] * 20},
        "as many numbers in every row as in the first, 1",
    ),
    "texts": ({"context": [["a"]] * 40}, "column context must hold lists of floats"),
    "numbers": ({"utility": [1.0] * 40}, "column utility must hold lists of floats"),
    "nulls": ({"context": [[1.0, None]] * 40}, "column context must hold"),
    "null domain": ({"domain": ["a"] * 39 + [None]}, "column domain must hold"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_parquet_that_cannot_be_used_is_refused_in_one_line(folder, case):
    columns, message = BAD_PARQUET[case]
    path = parquet(folder / "bad.parquet", **columns)
    with pytest.raises(ValueError, match=r"bad\.parquet") as caught:
        read_replay(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [b"{", b"[1, 2]", b'"abc"', b'["a"]'])
def test_names_in_parquet_are_a_json_list(folder, names):
    path = parquet(folder / "names.parquet", metadata={b"adapters": names})
    with pytest.raises(ValueError, match="adapters must be"):
        read_replay(path)
    good = json.dumps(list("vwxyz")).encode()
    path = parquet(folder / "names.parquet", metadata={b"adapters": good})
    assert read_replay(path).adapters == tuple("vwxyz")


def test_files_that_are_none_are_errors_of_the_system_or_name_the_suffixes(folder):
    with pytest.raises(FileNotFoundError):
        read_replay(folder / "none.npz")
    (folder / "is_folder.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        read_replay(folder / "is_folder.npz")
    with pytest.raises(ValueError, match=r"one of \.npz, \.parquet, got '\.csv'"):
        read_replay(folder / "a.csv")


def test_an_archive_that_grows_is_refused_before_it_is_decompressed(folder):
    path = npz(
        folder / "bomb.npz", np.savez_compressed, utilities=np.zeros((40, 200_000), np.float32)
    )
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match=r"at most 1\.25 times its size .* with numpy\.savez"):
        read_replay(path)
    path = folder / "bomb.parquet"
    table = pa.table({"context": [[1.0] * 1_000] * 900, "utility": [[0.0] * 1_000] * 900})
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"at most 1\.25 times its size .*write_replay"):
        read_replay(path)


def _lying(path: Path, shape: str) -> Path:
    """An archive whose header of contexts claims another shape than it holds."""
    npz(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    body = members["contexts.npy"]
    members["contexts.npy"] = body.replace(b"(40, 3)", shape.encode().ljust(7)[:7])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "shape", ["(9999,)", "(4e9,1)", "(-1,3) ", "(39, 3)", "(41, 3)", "(40,30)"]
)
def test_headers_that_lie_about_the_shape_are_refused(folder, shape):
    with pytest.raises(ValueError, match=r"contexts|npz"):
        read_replay(_lying(folder / "lying.npz", shape))


def test_texts_that_are_none_are_refused(folder):
    names = np.array(["a", "b", "c", "d", "e"])
    names.view(np.uint32)[0] = 0x110000
    with pytest.raises(ValueError, match="adapters must be texts of Unicode"):
        read_replay(npz(folder / "text.npz", adapters=names))
    domains = np.array(["x", "y"] * 20)
    domains.view(np.uint32)[0] = 0xD800
    with pytest.raises(ValueError, match="domains must be texts of Unicode"):
        read_replay(npz(folder / "text.npz", domains=domains))
    with pytest.raises(ValueError, match="domains must be printable"):
        read_replay(npz(folder / "text.npz", domains=np.array(["\x1b[31m", "b"] * 20)))


def test_every_damaged_byte_of_a_header_is_refused_or_read(folder):
    # In an archive of its own checksums: written anew, as whoever means harm would.
    path = folder / "header.npz"
    npz(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    told = []
    for place in range(100):
        for value in (0, 10, 39, 40, 48, 92, 255):
            body = bytearray(members["contexts.npy"])
            body[place] = value
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, bytes(body) if name == "contexts.npy" else data)
            try:
                read_replay(path)
            except ValueError as error:
                told.append(str(error))
    assert len(told) > 100
    assert [line for line in told if "\n" in line or len(line) > 400] == []


def peak(path: Path) -> int:
    """Bytes that reading a file took at its height."""
    tracemalloc.start()
    try:
        read_replay(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reading_takes_at_most_twice_the_file(folder, dtype):
    rng = np.random.default_rng(0)
    path = folder / "large.npz"
    held = {
        "contexts": rng.random((60_000, 8)).astype(dtype),
        "utilities": rng.random((60_000, 12)).astype(dtype),
        "domains": np.arange(60_000) % 7,
        "order": np.arange(60_000)[::-1],
    }
    np.savez(path, **held)
    size = path.stat().st_size
    assert peak(path) <= 2 * size
    # The control: a reader that holds the file beside its arrays takes more.
    tracemalloc.start()
    with np.load(io.BytesIO(path.read_bytes())) as loaded:
        every = {name: loaded[name].astype(np.float64) for name in loaded}
    assert tracemalloc.get_traced_memory()[1] > 2 * size
    tracemalloc.stop()
    assert set(every) == set(held)


def _flipped(data: bytes, draw: Any) -> bytes:
    """Bytes that are changed, cut, doubled or filled with others."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("flip", "cut", "insert", "zero")))
        place = draw(st.integers(0, max(0, len(damaged) - 1)))
        if kind == "flip" and damaged:
            damaged[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del damaged[place : place + draw(st.integers(1, 200))]
        elif kind == "insert":
            damaged[place:place] = draw(st.binary(min_size=1, max_size=40))
        else:
            damaged[place : place + 20] = bytes(min(20, len(damaged) - place))
    return bytes(damaged)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_thousand_damaged_files_raise_nothing_but_the_documented_error(folder, suffix):
    whole = folder / f"whole{suffix}"
    write_replay(whole, made(30, 3, 2, 2))
    data = whole.read_bytes()
    told: list[str] = []

    @CORRUPTIONS
    @given(st.data())
    def check(drawn):
        path = folder / f"damaged{suffix}"
        path.write_bytes(_flipped(data, drawn.draw))
        try:
            read_replay(path)
        except ValueError as error:
            told.append(str(error))

    check()
    assert len(told) > 300
    assert [line for line in told if "\n" in line or f"damaged{suffix}" not in line] == []


def test_the_shipped_replay_is_read_and_is_what_its_page_says():
    replay = real_adapters()
    assert replay.utilities.shape == (4_500, 15)
    assert replay.contexts.shape == (4_500, 10)
    assert len(replay.domain_names) == 10
    assert "banking" in replay.domain_names
    assert replay.adapters[14] == "generalist-r32"
    assert not replay.binary
