"""Damaged and hostile files: one documented error each, and no more memory than allowed."""

import io
import json
import os
import pathlib
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import paging
from polar_jax.io import parquet, peft, read_paging_table, safetensors, tables

ROWS = [["a", 1.5, 5], ["b", 2.0, 6], ["a", 3.25, 5], ["c", 1e3, 7]]
NAMES = ["adapter", "ms", "bytes"]


def _csv() -> bytes:
    return "\n".join(",".join(map(str, row)) for row in [NAMES, *ROWS]).encode()


def _json() -> bytes:
    return json.dumps([dict(zip(NAMES, row, strict=True)) for row in ROWS]).encode()


def _parquet() -> bytes:
    out = io.BytesIO()
    columns = zip(*ROWS, strict=True)
    pq.write_table(pa.table(dict(zip(NAMES, map(list, columns), strict=True))), out)
    return out.getvalue()


def _safetensors() -> bytes:
    out = io.BytesIO()
    tensors = [safetensors.TensorSpec(f"t{i}", (i, 3), "BF16") for i in range(4)]
    list(safetensors.write(out, tensors, [bytes(tensor.num_bytes) for tensor in tensors]))
    return out.getvalue()


def _config() -> bytes:
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    return json.dumps(config).encode()


def _read_config(path: pathlib.Path) -> Any:
    return peft._read_config(path)


READERS: dict[str, tuple[Callable[[pathlib.Path], Any], bytes]] = {
    "table.csv": (read_paging_table, _csv()),
    "table.json": (read_paging_table, _json()),
    "table.parquet": (read_paging_table, _parquet()),
    peft.WEIGHTS_FILE: (safetensors.read_header, _safetensors()),
    peft.CONFIG_FILE: (_read_config, _config()),
}
edits = st.tuples(st.integers(0, 10_000), st.integers(0, 20), st.binary(max_size=6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.mark.parametrize("name", READERS)
@settings(derandomize=True, deadline=None, max_examples=1_000)
@given(
    changes=st.lists(edits, min_size=1, max_size=3),
    keep=st.one_of(st.just(1.0), st.floats(0.0, 1.0)),
)
def test_corrupted_files_raise_nothing_but_clear_errors(
    folder: pathlib.Path, name: str, changes: list[tuple[int, int, bytes]], keep: float
) -> None:
    read, content = READERS[name]
    for start, length, replacement in changes:
        at = start % (len(content) + 1)
        content = content[:at] + replacement + content[at + length :]
    (folder / name).write_bytes(content[: int(len(content) * keep)])
    found, message = None, ""
    try:
        found = read(folder / name)
    except (ValueError, OSError) as error:
        message = str(error)
    if found is None:
        assert name in message
        assert "\n" not in message
    elif isinstance(found, paging.PagingTable):
        assert len(set(found.adapters)) == len(found.adapters) == found.mean_ms.size > 0
        assert ((found.mean_ms >= 0) & (found.mean_ms <= 4 * paging.MAX_MS)).all()
    elif isinstance(found, safetensors.Header):
        assert found.data_start + found.data_bytes == (folder / name).stat().st_size


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_are_corrupted_above_are_read_as_they_are(
    folder: pathlib.Path, name: str
) -> None:
    read, content = READERS[name]
    (folder / name).write_bytes(content)
    assert read(folder / name) is not None


def peak_of(read: Callable[[pathlib.Path], Any], path: pathlib.Path) -> int:
    """Most bytes that Python and NumPy held at once while a file was read or refused."""
    tracemalloc.start()
    try:
        read(path)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def _tensors(number: int, *, reverse: bool) -> str:
    # The shortest entries there are, and so the most tensors for their bytes.
    places = [(number - 1 - i if reverse else i) for i in range(number)]
    entries = (
        f'"{i:x}":{{"dtype":"U8","shape":[],"data_offsets":[{at},{at + 1}]}}'
        for i, at in enumerate(places)
    )
    return "{" + ",".join(entries) + "}"


HEADERS = {
    "many tensors": _tensors(8_000, reverse=False),
    "many tensors backwards": _tensors(8_000, reverse=True),
    "many empty tensors": "{"
    + ",".join(f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(8_000))
    + "}",
    "a long metadata text": '{"__metadata__":{"a":"' + "x" * 500_000 + '"}}',
    "escapes": '{"__metadata__":{"a":"' + r"\n" * 250_000 + '"}}',
    "wide characters": '{"__metadata__":{"a":"' + "\U0001f600" * 125_000 + '"}}',
    "many metadata": '{"__metadata__":{' + ",".join(['"":""'] * 80_000) + "}}",
    "lists in lists": '{"a":' + "[" * 500_000,
    "many lists": '{"a":[' + "[]," * 150_000 + "[]]}",
    "many objects": '{"a":[' + "{}," * 150_000 + "{}]}",
    "a long name": '{"' + "a" * 500_000 + '":1}',
    "a long number": '{"a":{"dtype":"U8","shape":[' + "9" * 500_000 + "]}}",
    "spaces": "{" + " " * 500_000 + "}",
}
# What the buffers of a scan take, whatever the file's size.
CONSTANT = 2**18


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_takes_less_than_twice_its_file(folder: pathlib.Path, case: str) -> None:
    text = HEADERS[case].encode()
    path = folder / "header"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + (8_000 if case.startswith("many tensors") else 0))
    assert peak_of(safetensors.read_header, path) < 2 * path.stat().st_size + CONSTANT


@pytest.mark.parametrize("case", ["many tensors", "many lists", "many objects"])
def test_the_bound_above_can_fail(folder: pathlib.Path, case: str) -> None:
    # What reading the header with the json module would take.
    path = folder / "control"
    path.write_text(HEADERS[case])
    peak = peak_of(lambda one: json.loads(one.read_bytes()), path)
    assert peak > 2 * path.stat().st_size + CONSTANT


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 99_999_999, 101])
def test_a_length_that_lies_allocates_nothing(folder: pathlib.Path, length: int) -> None:
    path = folder / "lie"
    path.write_bytes(struct.pack("<Q", length) + b"{" * 100)
    assert peak_of(safetensors.read_header, path) < CONSTANT


@pytest.mark.parametrize("item", ["[]", "{}", '"a"', "1", '"\\u1234"', "[[[[]]]]"])
def test_a_config_takes_little(folder: pathlib.Path, item: str) -> None:
    path = folder / "config"
    path.write_text('{"r":[' + ",".join([item] * (60_000 // (len(item) + 1))) + "]}")
    assert 50_000 < path.stat().st_size < peft.MAX_CONFIG
    assert peak_of(_read_config, path) < 2 * path.stat().st_size + 3 * 2**20
    path.write_bytes(b"x" * 10_000_000)
    assert peak_of(_read_config, path) < CONSTANT


def _json_of(item: str) -> str:
    return "[" + ",".join([item] * ((tables.MAX_JSON - 2) // (len(item) + 1))) + "]"


# As much as each limit lets through, in the fewest bytes.
FULL = {
    "rows.csv": lambda: "adapter,ms\n" + "a,1\n" * tables.MAX_ROWS,
    "names.csv": lambda: "adapter,ms\n" + "".join(f"{i:x},1\n" for i in range(tables.MAX_ADAPTERS)),
    "tiers.csv": lambda: (
        "adapter,tier,ms\n"
        + "".join(
            f"{i:x},{tier:x},1\n"
            for i in range(tables.MAX_ADAPTERS)
            for tier in range(tables.MAX_TIERS)
        )
    ),
    "rectangle.csv": lambda: (
        "adapter,ms\n"
        + "".join(f"{i:x},1\n" for i in range(1_400))
        + "a,1\n" * (tables.MAX_CELLS // 1_400 - 1)
    ),
    "wide.csv": lambda: "adapter,ms,note\na,1," + "\U0001f600" * 100_000 + "\n",
    "quotes.csv": lambda: 'adapter,ms,note\na,1,"' + "x\n" * 60_000 + '"\n',
    "spaces.csv": lambda: " \n" * 2_000_000,
    "comment.csv": lambda: "adapter,ms,note\n" + ("a,1," + "x" * 100_000 + "\n") * 60,
    "lists.json": lambda: _json_of("[]"),
    "objects.json": lambda: _json_of("{}"),
    "rows.json": lambda: _json_of('{"a":1}'),
    "numbers.json": lambda: '{"a":' + _json_of("1")[:-9] + "]}",
    "names.json": lambda: "{" + ",".join(f'"{i:x}":1' for i in range(50_000)) + "}",
    "wide.json": lambda: '{"\U0001f600":[' + ",".join(["1"] * 200_000) + "]}",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow) if one == "rows.csv" else one for one in FULL],
)
def test_a_table_takes_twice_its_file_and_a_constant(folder: pathlib.Path, name: str) -> None:
    path = folder / name
    path.write_text(FULL[name]())
    size = path.stat().st_size
    assert size <= (tables.MAX_JSON if path.suffix == ".json" else tables.MAX_FILE)
    assert peak_of(read_paging_table, path) < 2 * size + tables.MAX_BESIDE


def test_the_bound_of_tables_can_fail(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One rectangle beyond the limit, which a file of 80 kB could ask for.
    path = folder / "beyond.csv"
    many = "".join(f"{i:x},1\n" for i in range(5_000))
    path.write_text("adapter,ms\n" + many + "a,1\n" * 5_000)
    with pytest.raises(ValueError, match="adapters times measurements"):
        read_paging_table(path)
    monkeypatch.setattr(tables, "MAX_CELLS", 10**8)
    assert peak_of(read_paging_table, path) > 2 * path.stat().st_size + tables.MAX_BESIDE


LIMITS = {
    "rows": ("t.csv", "adapter,ms\n" + "a,1\n" * 5, "MAX_ROWS", "at most 4 measurements"),
    "adapters": (
        *("t.csv", "adapter,ms\n" + "".join(f"{i},1\n" for i in range(5)), "MAX_ADAPTERS"),
        "measurements of 4 adapters",
    ),
    "bytes": ("t.csv", "adapter,ms\na,1\n", "MAX_FILE", "at most 4 bytes, got 15"),
    "tiers": (
        *("t.csv", "adapter,tier,ms\n" + "".join(f"a,{i},1\n" for i in range(5)), "MAX_TIERS"),
        "at most 4 tiers, got more",
    ),
    "JSON": ("t.json", '{"a": 1}', "MAX_JSON", "at most 4 bytes, got 8; use CSV"),
    "a rectangle": (
        *("t.csv", "adapter,ms\na,1\na,2\na,3\nb,1\n", "MAX_CELLS"),
        "at most 4, got 2 times 3; give fewer measurements",
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_what_is_too_much_is_refused(
    folder: pathlib.Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text, limit, said = LIMITS[case]
    (folder / name).write_text(text)
    read_paging_table(folder / name)
    monkeypatch.setattr(tables, limit, 4)
    with pytest.raises(ValueError, match=said):
        read_paging_table(folder / name)


def _saved(path: pathlib.Path, columns: dict[str, Any]) -> pathlib.Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_that_would_unpack_to_too_much_is_refused(folder: pathlib.Path) -> None:
    long = "a" * (2**16 + 1)
    path = _saved(folder / "bomb.parquet", {"adapter": [long] * 2_000, "ms": [1.0] * 2_000})
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match="'adapter' must hold texts of at most 65536 bytes"):
        read_paging_table(path)
    rows = parquet.rows(path.read_bytes(), lambda _: [1], max_rows=2_000, max_bytes=10**6)
    assert sum(1 for _ in rows) == 2_000
    with pytest.raises(ValueError, match="at most 1999 rows and 1000000 bytes, got 2000 rows"):
        parquet.rows(path.read_bytes(), lambda _: [1], max_rows=1_999, max_bytes=10**6)
    with pytest.raises(ValueError, match="at most 2000 rows and 10 bytes"):
        parquet.rows(path.read_bytes(), lambda _: [1], max_rows=2_000, max_bytes=10)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([{"x": 1}]), "struct"),
        (pa.array([["a"]]), "list<"),
        (pa.array([[[1.0]]]), "list<"),
    ],
)
def test_parquet_columns_of_other_kinds_are_refused(
    folder: pathlib.Path, column: Any, kind: str
) -> None:
    path = _saved(folder / "kinds.parquet", {"adapter": ["a"], "ms": column})
    with pytest.raises(ValueError, match=f"'ms' must hold text, numbers or lists.*got {kind}"):
        read_paging_table(path)


def test_parquet_texts_may_be_a_dictionary_or_bytes(folder: pathlib.Path) -> None:
    names = pa.array(["x", "y"]).dictionary_encode()
    path = _saved(folder / "kinds.parquet", {"adapter": names, "ms": [1.0, 2.0]})
    assert read_paging_table(path).adapters == ("x", "y")
