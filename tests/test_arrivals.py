"""Times between arrivals: the shipped traces, files of users, damage."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax.io import arrivals, azure_arrivals, read_arrivals

# The first lines of the public traces that the formats are taken from.
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225750,879,55
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 3000, "input_length": 7000, "output_length": 10, "hash_ids": [2]}
{"timestamp": 3000, "input_length": 10, "output_length": 1, "hash_ids": []}
"""
CORRUPTIONS = settings(derandomize=True, deadline=None, max_examples=1_000, database=None)


def read(folder: Path, name: str, content: str | bytes) -> np.ndarray:
    """Writes a file and reads it."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_arrivals(path)


def test_the_formats_of_the_public_traces_are_read(tmp_path):
    np.testing.assert_allclose(read(tmp_path, "a.csv", AZURE), [4314.579, 227.406], atol=1e-3)
    np.testing.assert_array_equal(read(tmp_path, "m.jsonl", MOONCAKE), [3000.0, 0.0])
    own = 'arrival_ms,what\r\n5,"a,b"\r\n\r\n1.5,c\r\n'
    np.testing.assert_array_equal(read(tmp_path, "o.csv", own), [3.5])
    np.testing.assert_array_equal(read(tmp_path, "b.csv", b"\xef\xbb\xbfARRIVAL_MS\n1\n4\n"), [3.0])
    zoned = "timestamp\n2024-01-01T00:00:00+01:00\n2023-12-31T23:00:01Z\n"
    np.testing.assert_array_equal(read(tmp_path, "z.csv", zoned), [1000.0])


def test_the_shipped_traces_are_those_of_their_page():
    for name, count, mean in (("conv", 19_365, 180.8), ("code", 8_818, 389.7)):
        gaps = azure_arrivals(f"azure-2023-{name}")
        assert gaps.shape == (count,)
        assert gaps.dtype == np.float32
        assert gaps.mean() == pytest.approx(mean, abs=0.1)
        assert (gaps > 0).all()
    with pytest.raises(ValueError, match="azure-2023-conv, azure-2023-code, got 'azure'"):
        azure_arrivals("azure")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "one column timestamp"),
        ("a.csv", "time\n1\n2\n", "one column timestamp .* got \\['time'\\]"),
        ("a.csv", "timestamp,arrival_ms\n", "must have one column"),
        ("a.csv", "arrival_ms\n1\n", "two or more requests, got 1"),
        ("a.csv", "arrival_ms\n1\nx\n", "line 3: arrival_ms must be a number of ms"),
        ("a.csv", "arrival_ms\n1\nnan\n", "line 3"),
        ("a.csv", "arrival_ms\n1\n1e300\n", "line 3"),
        ("a.csv", "arrival_ms\n1\n1_0\n", "line 3"),
        ("a.csv", "arrival_ms,b\n1,2\n1\n", "line 3: must have 2 cells like the header, got 1"),
        ("a.csv", "timestamp\n2023-11-16 18:15:46\n5\n", "line 3: timestamp must be a date"),
        ("a.csv", 'arrival_ms\n"1\n2\n', "line 2: not valid CSV"),
        ("a.csv", b"arrival_ms\n1\n\xff\n", "line 3: must be UTF-8"),
        ("a.csv", "arrival_ms\n" + "1" * 70_000, "line 2: must be shorter than 65,536"),
        ("a.jsonl", "{}\n{}\n", "line 1: must be an object with a number timestamp"),
        ("a.jsonl", '{"timestamp": true}\n', "line 1"),
        ("a.jsonl", '{"timestamp": 1}\n[', "line 2: not valid JSON"),
        ("a.jsonl", '{"timestamp": 1}\n{"timestamp": 1e400}\n', "line 2: a time must be"),
        ("a.txt", "1\n2\n", r"ending in \.csv or \.jsonl, got '\.txt'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("d.csv", AZURE), ("d.jsonl", MOONCAKE)])
def test_a_thousand_damaged_files_raise_nothing_but_the_documented_error(tmp_path, name, content):
    whole = content.encode()
    gaps: list[np.ndarray] = []
    told: list[str] = []

    @CORRUPTIONS
    @given(
        st.integers(0, len(whole) - 1), st.integers(0, 30), st.binary(max_size=12), st.booleans()
    )
    def check(place, length, filler, cut):
        data = whole[:place] + filler + (b"" if cut else whole[place + length :])
        try:
            gaps.append(read(tmp_path, name, data))
        except ValueError as error:
            told.append(str(error))

    check()
    assert min(len(gaps), len(told)) > 20
    assert all(np.isfinite(one).all() and (one >= 0).all() for one in gaps)
    assert [line for line in told if "\n" in line] == []


def test_a_file_without_line_breaks_is_not_held_whole(tmp_path):
    with pytest.raises(ValueError, match="line 1: must be shorter"):
        read(tmp_path, "long.csv", b"x" * 5_000_000)
    assert arrivals.TRACES == ("azure-2023-conv", "azure-2023-code")


@pytest.mark.parametrize(
    "digits", [1, *(pytest.param(one, marks=pytest.mark.slow) for one in (3, 12))]
)
def test_reading_takes_at_most_twice_the_file(tmp_path, digits):
    path = tmp_path / "many.csv"
    path.write_bytes(
        b"arrival_ms\n" + b"".join(b"%0*d\n" % (digits, i % 10) for i in range(400_000))
    )
    size = path.stat().st_size
    tracemalloc.start()
    try:
        if digits == 1:
            # Two bytes a line would need four times the file.
            with pytest.raises(ValueError, match="at least 4 bytes a line"):
                read_arrivals(path)
        else:
            assert len(read_arrivals(path)) == 399_999
        assert tracemalloc.get_traced_memory()[1] <= 2 * size + 200 * 2**10
        # The control: lines held as text take more.
        held = path.read_text().split()
        assert tracemalloc.get_traced_memory()[1] > 2 * size + 200 * 2**10
        assert len(held) == 400_001
    finally:
        tracemalloc.stop()
