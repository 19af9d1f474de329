"""Readers of paging tables: what they accept, what they refuse, and how they say so."""

import csv
import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import paging
from polar_jax.io import package_data, qwen_paging_table, read_paging_table

quick = settings(derandomize=True, deadline=None, max_examples=40)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).map(str.strip)
names = names.filter(lambda name: bool(name) and name.isprintable())
latencies = st.floats(0.0, paging.MAX_MS, allow_nan=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def read(folder, name, content):
    """Writes `content` to a file and reads it as a paging table."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_paging_table(path)


def to_csv(columns):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return out.getvalue().encode()


def to_json(columns):
    rows = zip(*columns.values(), strict=True)
    return json.dumps([dict(zip(columns, row, strict=True)) for row in rows]).encode()


def to_parquet(columns):
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


WRITERS = {".csv": to_csv, ".json": to_json, ".parquet": to_parquet}
every_format = pytest.mark.parametrize("suffix", WRITERS)


@every_format
def test_one_row_per_adapter_gives_means(folder, suffix):
    columns = {"adapter": ["b", "a"], "ms": [2.5, 1.0], "bytes": [7, 9], "tier": ["Disk"] * 2}
    table = read(folder, f"t{suffix}", WRITERS[suffix](columns))
    assert table.adapters == ("b", "a")
    assert table.mean_ms.tolist() == [2.5, 1.0]
    assert table.samples_ms is None
    np.testing.assert_array_equal(table.size_bytes, [7, 9])
    assert table.tier == "disk"


@every_format
def test_many_rows_per_adapter_are_samples(folder, suffix):
    columns = {"adapter": ["a", "b", "a"], "load_ms": [1.0, 5.0, 2.0], "gpu": ["x", "y", "z"]}
    table = read(folder, f"t{suffix}", WRITERS[suffix](columns))
    assert table.mean_ms.tolist() == [1.5, 5.0]
    samples, count = paging.draw_arrays(table)
    assert samples.tolist() == [[1.0, 2.0], [5.0, 0.0]]
    assert count.tolist() == [2, 1]
    assert table.tier == "unspecified"


@every_format
def test_tiers_that_a_page_in_passes_through_add_up(folder, suffix):
    columns = {
        "adapter": ["a", "a", "a", "b", "b"],
        "tier": ["disk", "disk", "memory", "memory", "disk"],
        "ms": [10.0, 20.0, 3.0, 4.0, 8.0],
    }
    table = read(folder, f"t{suffix}", WRITERS[suffix](columns))
    assert table.mean_ms.tolist() == [18.0, 12.0]
    assert table.samples_ms is None
    assert table.tier == "disk+memory"


def test_adapters_that_live_in_different_tiers_keep_their_samples(folder):
    table = read(folder, "t.csv", "adapter,tier,ms\na,disk,1\na,disk,2\nb,remote,9\n")
    assert paging.draw_arrays(table)[1].tolist() == [2, 1]
    assert table.tier == "disk,remote"


def test_an_adapter_without_one_of_the_tiers_is_refused(folder):
    with pytest.raises(ValueError, match=r"'b' must have rows of every tier.*none of memory"):
        read(folder, "t.csv", "adapter,tier,ms\na,disk,1\na,memory,2\nb,disk,9\n")


@pytest.mark.parametrize("adapter", ["adapter", " Adapter_Name", "NAME", "lora ", "adapter name"])
@pytest.mark.parametrize("ms", ["ms", "Load MS", "latency_ms", " time-ms "])
def test_column_names_are_read_forgivingly(folder, adapter, ms):
    table = read(folder, "t.csv", f"index,{adapter},{ms}\n1,x,2.5\n")
    assert (table.adapters, table.mean_ms.tolist()) == (("x",), [2.5])


@pytest.mark.parametrize(
    "content",
    [
        "adapter,ms\nx,1.5\ny,2\n",
        "\ufeffadapter,ms\r\nx,1.5\r\ny,2",
        "\n adapter ; ms \n\n x ; 1.5 \n y;2\n;\n",
        'adapter\tms\n"x"\t"1.5"\ny\t2e0\n',
        "ms,adapter\r1.5,x\r2,y\r",
    ],
)
def test_csv_dialects_mean_the_same(folder, content):
    table = read(folder, "T.CSV", content)
    assert (table.adapters, table.mean_ms.tolist()) == (("x", "y"), [1.5, 2.0])


@pytest.mark.parametrize(
    "content",
    [
        '[{"adapter": "x", "ms": 1}, {"ms": 4, "adapter": "y"}, {"adapter": "x", "ms": 3.0}]',
        '[{"adapter": "x", "ms": [1, 3]}, {"adapter": "y", "ms": 4}]',
        '{"lora": ["x", "y", "x"], "time_ms": [1, 4, 3], "note": "ignored"}',
        '{"x": [1, 3], "y": 4}',
        '\ufeff{"x": [1, 3], "y": [4]}',
    ],
)
def test_json_shapes_mean_the_same(folder, content):
    table = read(folder, "t.json", content)
    assert (table.adapters, table.mean_ms.tolist()) == (("x", "y"), [2.0, 4.0])
    assert paging.draw_arrays(table)[0].tolist() == [[1.0, 3.0], [4.0, 0.0]]


def test_whole_numbers_may_name_adapters(folder):
    table = read(folder, "t.parquet", to_parquet({"adapter": [7, 8], "ms": [1, 2]}))
    assert table.adapters == ("7", "8")


BAD = [
    ("t.csv", "", "the file is empty"),
    ("t.csv", " \n\n", "the file is empty"),
    ("t.csv", "\ufeff", "holds no adapters"),
    ("t.csv", "adapter,ms\n", "holds no adapters"),
    ("t.csv", "adapter;ms\na;1,5\n", "line 2: ms must be a number .*got '1,5'"),
    ("t.csv", "adapter,ms\na,1\nb,fast\n", "line 3: ms must be a number .*got 'fast'"),
    ("t.csv", "adapter,ms\na,1_5\n", "got '1_5'"),
    ("t.csv", "adapter,ms\na,\n", "line 2: ms must be a number .*got ''"),
    ("t.csv", "adapter,ms\na,nan\n", "line 2: ms must be .*got nan"),
    ("t.csv", "adapter,ms\na,inf\n", r"in \[0, 1e\+09\], got inf"),
    ("t.csv", "adapter,ms\na,-3\n", "line 2: ms must be .*got -3"),
    ("t.csv", "adapter,ms\n ,3\n", "line 2: adapter must be printable, non-empty text, got ' '"),
    ("t.csv", "adapter,ms,tier\na,3,\n", "line 2: tier must be"),
    ("t.csv", "adapter,ms,bytes\na,3,0\n", r"line 2: bytes of adapter 'a' must be a whole .*got 0"),
    ("t.csv", "adapter,ms,bytes\na,3,1\na,3,2\n", r"one size, got \[1, 2\] bytes"),
    ("t.csv", "adapter,ms\na\n", "line 2: must have 2 cells like the header, got 1"),
    ("t.csv", "adapter,ms\na,1,2\n", "line 2: must have 2 cells like the header, got 3"),
    ("t.csv", 'adapter,ms\n"a,1\nb,2\n', "not valid CSV"),
    ("t.csv", "adapter,seconds\na,1\n", r"column for ms, named one of ms, .*\['adapter', 'sec"),
    ("t.csv", "rank,ms\n8,1\n", r"column for adapter, .*\['rank', 'ms'\]"),
    ("t.csv", "adapter,name,ms\na,b,1\n", "one column for adapter, got 'adapter' and 'name'"),
    ("t.csv", "adapter,ms\ncafé,1\n".encode("latin-1"), "UTF-8 text, got byte 0xe9 at offset 14"),
    ("t.csv", "adapter,ms\na,1\n".encode("utf-16"), "UTF-8 text, got byte 0xff"),
    ("t.csv", "adapter,ms\na,1\n".encode("utf-16-le"), "NUL"),
    ("t.json", b"\x89PNG\r\n\x1a\n\0", "UTF-8 text, got byte 0x89"),
    ("t.json", "", "the file is empty"),
    ("t.json", "[]", "holds no adapters"),
    ("t.json", "{}", "holds no adapters"),
    ("t.json", '[{"adapter": "a", "ms": 1}, {"adap', "cut short or malformed"),
    ("t.json", "[" * 100_000, "nested too deeply|malformed"),
    ("t.json", '{"a": 1, "a": 2}', "must be distinct, got 'a' twice"),
    ("t.json", '{"a": 1, "a ": 2}', "must be distinct, got 'a ' twice"),
    ("t.json", '{"a": "1"}', "key 'a': ms must be a number .*got '1'"),
    ("t.json", '{"a": true}', "got True"),
    ("t.json", '{"a": []}', r"key 'a': ms must be .*got \[\]"),
    ("t.json", '{"a": [1, NaN]}', "got nan"),
    ("t.json", '{"a": 1e999}', "got inf"),
    ("t.json", '{"a": 1%s}' % ("0" * 400), "ms must be a number"),
    ("t.json", '{"a": 1%s}' % ("0" * 5000), "t.json"),
    ("t.json", r'{"\ud800": 1}', "printable"),
    ("t.json", '[{"adapter": "a"}]', r"column for ms, .*\['adapter'\]"),
    ("t.json", '[{"adapter": "a", "ms": 1}, {"adapter": "b"}]', "row 2: ms .*got None"),
    ("t.json", '[["a", 1]]', "must be a list of objects"),
    ("t.json", "3", "must be a list of objects"),
    ("t.json", '{"adapter": ["a"], "ms": [1, 2]}', "equally long, got lengths"),
    ("t.json", '{"adapter": "a", "ms": 1}', "column 'adapter' must be a list"),
    ("t.parquet", b"adapter,ms\na,1\n", "not valid Parquet"),
    ("t.parquet", to_parquet({"adapter": ["a"], "ms": [1.0]})[:-9], "not valid Parquet"),
    ("t.parquet", to_parquet({"adapter": ["a"], "ms": ["1.0"]}), "row 1: ms .*got '1.0'"),
    ("t.parquet", to_parquet({"adapter": ["a", "b"], "ms": [1.0, None]}), "row 2: ms .*None"),
    ("t.parquet", to_parquet({"adapter": ["a"], "ms": [math.nan]}), "row 1: ms .*got nan"),
    ("t.parquet", to_parquet({"adapter": [b"a"], "ms": [1.0]}), "row 1: adapter must be"),
    ("t.parquet", to_parquet({"adapter": pa.array([], pa.string()), "ms": []}), "no adapters"),
    ("t.parquet", to_parquet({"rank": [8], "ms": [1.0]}), r"\['rank', 'ms'\]"),
    ("t.txt", "adapter,ms\na,1\n", "suffix must be one of .csv, .json, .parquet, got '.txt'"),
    ("t", "adapter,ms\na,1\n", "suffix must be .*got ''"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_files_are_refused_in_one_line(folder, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, name, content)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_os_errors_that_name_the_path(folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_paging_table(folder / "nowhere.csv")
    (folder / "dir.csv").mkdir()
    with pytest.raises(IsADirectoryError, match=r"must be a file, got a directory.*dir\.csv"):
        read_paging_table(folder / "dir.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_an_os_error(folder):
    path = folder / "closed.csv"
    path.write_text("adapter,ms\na,1\n")
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"closed\.csv"):
        read_paging_table(path)


@every_format
@quick
@given(
    rows=st.dictionaries(names, st.lists(latencies, min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_what_is_written_is_read_back(folder, suffix, rows):
    columns = {
        "adapter": [name for name, times in rows.items() for _ in times],
        "ms": [ms for times in rows.values() for ms in times],
    }
    table = read(folder, f"round{suffix}", WRITERS[suffix](columns))
    expected = paging.make_table(list(rows), samples_ms=list(rows.values()))
    assert table.adapters == expected.adapters
    np.testing.assert_array_equal(table.mean_ms, expected.mean_ms)
    assert (table.samples_ms is None) == all(len(times) == 1 for times in rows.values())
    for read_back, written in zip(
        paging.draw_arrays(table), paging.draw_arrays(expected), strict=True
    ):
        np.testing.assert_array_equal(read_back, written)


VALID = {
    "adapter": ["a", "b", "a", "c"],
    "ms": [1.5, 2.0, 3.25, 1e3],
    "bytes": [5, 6, 5, 7],
    "tier": ["disk"] * 4,
}


@every_format
def test_truncation_anywhere_is_refused_or_leaves_a_valid_table(folder, suffix):
    content = WRITERS[suffix](VALID)
    refused = 0
    for size in range(0, len(content), max(1, len(content) // 60)):
        try:
            read(folder, f"cut{suffix}", content[:size])
        except ValueError:
            refused += 1
    # Only a CSV can be cut so that the rest is a file of its own.
    total = len(range(0, len(content), max(1, len(content) // 60)))
    assert refused == total or suffix == ".csv"


def test_shipped_qwen_rows_are_the_900_of_the_origin():
    loads = package_data._read_loads()
    counts = {key: values.size for key, values in loads.items()}
    assert counts == {
        (8, "disk"): 150,
        (8, "memory"): 300,
        (16, "disk"): 100,
        (16, "memory"): 200,
        (32, "disk"): 50,
        (32, "memory"): 100,
    }


def test_qwen_adapters_cost_the_sum_of_their_two_mean_loads():
    table = qwen_paging_table(15)
    loads = package_data._read_loads()
    expected = [loads[r, "disk"].mean() + loads[r, "memory"].mean() for r in (8, 16, 32)]
    np.testing.assert_allclose(table.mean_ms, np.tile(expected, 5), rtol=1e-12)
    np.testing.assert_allclose(table.mean_ms[:3], [13.3, 19.2, 25.9], atol=0.06)
    assert table.adapters[:3] == ("qwen2.5-7b-r8-00", "qwen2.5-7b-r16-01", "qwen2.5-7b-r32-02")
    assert table.samples_ms is not None
    assert paging.draw_arrays(table)[1][:3].tolist() == [300, 200, 100]


def test_qwen_samples_spread_like_independent_loads():
    loads = package_data._read_loads()
    padded, count = paging.draw_arrays(qwen_paging_table(3))
    for row, rank in enumerate(package_data.RANKS):
        spread = math.hypot(loads[rank, "disk"].std(), loads[rank, "memory"].std())
        samples = padded[row, : count[row]]
        assert samples.std() == pytest.approx(spread, rel=0.01)


@pytest.mark.parametrize("num_adapters", [1, 2, 101])
def test_qwen_table_has_any_number_of_distinct_adapters(num_adapters):
    assert len(set(qwen_paging_table(num_adapters).adapters)) == num_adapters


@pytest.mark.parametrize("num_adapters", [0, -2, 1.5, "3"])
def test_qwen_table_refuses_other_numbers(num_adapters):
    with pytest.raises(ValueError, match=f"num_adapters must be .*got '?{num_adapters}"):
        qwen_paging_table(num_adapters)


def test_readers_load_pyarrow_only_for_parquet(folder):
    path = folder / "light.json"
    path.write_text('{"a": 1}')
    code = (
        "import sys, polar_jax.io as io; io.qwen_paging_table(3); "
        f"io.read_paging_table({str(path)!r}); sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
