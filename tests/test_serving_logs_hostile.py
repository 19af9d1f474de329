"""Serving logs that are damaged or made to hurt: one documented error, bounded memory."""

import io
import os
import threading
import tracemalloc

import pytest
import serving_excerpts as excerpts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polar_jax.io import logs
from polar_jax.io.logs import lines, records

# Beside twice the file: names, columns of loads, the open loads of SGLang, one line.
CONSTANT = 6 * 2**20
many = settings(
    derandomize=True,
    deadline=None,
    max_examples=1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Pieces that mean something to one of the readers, beside bytes that mean nothing.
pieces = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            *(b"\n", b"\r", b"\0", b"\x1b[", b'"', b"'", b",", b"] ", b"e999", b"9" * 30, b"-1"),
            *(b"nan", b"99-99 99:99:99", b"0000-00-00T00:00:00", b"\xff\xfe", b"\xed\xa0\x80"),
            b"\xd9\xa3",  # A digit, but not one of ASCII.
        ]
    ),
)
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 60), pieces), min_size=1, max_size=6)


def damaged(data, changes):
    """Replaces bytes at places given as fractions of the length."""
    for place, width, piece in changes:
        at = int(place * len(data))
        data = data[:at] + piece + data[at + width :]
    return data


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("logs") / "server.log"


@pytest.mark.parametrize("kind", excerpts.ALL)
def test_damaged_logs_raise_nothing_but_one_line_of_value_error(path, kind):
    whole = excerpts.ALL[kind].encode()
    path.write_bytes(whole)
    own = logs.read_serving_log(path).format
    seen = {"read": 0, "refused": 0}
    messages: list[str] = []

    @many
    @given(edits, st.booleans())
    def check(changes, guess):
        path.write_bytes(damaged(whole, changes))
        try:
            log = logs.read_serving_log(path, "auto" if guess else own)
            seen["read"] += 1
            assert len(log.loads) >= 1
            for load in log.loads:
                assert 0 <= load.ms <= 1e9
                assert load.size_bytes is None or load.size_bytes >= 1
            logs.to_paging_table(log)
        except ValueError as error:
            seen["refused"] += 1
            messages.append(str(error))

    check()
    # A test whose inputs are all refused, or all read, would show little.
    assert seen["read"] > 100
    assert seen["refused"] > 5
    assert not any("\n" in message or len(message) > 1500 for message in messages)


def peak_above_bound(path, read):
    """Bytes at the peak of `read(path)` beyond twice the file and the constant."""
    tracemalloc.start()
    try:
        read(path)
    except ValueError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak - 2 * path.stat().st_size - CONSTANT


def long_line():
    return b"Loaded new LoRA adapter: name '" + b"x" * 20_000_000


def short_rows():
    return b"adapter,ms\n" + b"a,1\n" * 150_000


def many_names():
    return b"adapter,ms\n" + b"".join(b"%d%s,1\n" % (n, b"n" * 200) for n in range(5_000))


def wide_names():
    name = "\U00010348" + "n" * 240  # Four bytes a character once one of them needs it.
    return b"adapter,ms\n" + "".join(f"{n}{name},1\n" for n in range(4_090)).encode()


def open_loads():
    line = "[2025-07-01 10:00:00] LoRA adapter loading starts: lora_name={}. avail mem=1.0 GB\n"
    return "".join(line.format(n) for n in range(60_000)).encode()


def waiting_downloads():
    line = "2024-05-07T12:40:00Z INFO lorax_router::loader: adapter {} downloaded\n"
    return "".join(line.format(n) for n in range(20_000)).encode()


def many_processes():
    line = "(w pid={}) INFO [a] Total loads from disk: 1. Total loading time from disk: 1 seconds\n"
    return "".join(line.format(n) for n in range(20_000)).encode()


HOSTILE = [long_line, short_rows, many_names, wide_names, open_loads, waiting_downloads]


@pytest.mark.parametrize("make", [*HOSTILE, many_processes])
def test_memory_is_bounded_by_twice_the_file(path, make):
    path.write_bytes(make())
    assert peak_above_bound(path, logs.read_serving_log) <= 0


def test_the_bound_is_one_that_simpler_readers_break(path):
    path.write_bytes(short_rows())
    assert peak_above_bound(path, lambda path: path.read_text().splitlines()) > 0
    path.write_bytes(long_line())

    def copies(path):
        data = path.read_bytes()
        return data, data.decode(), data.upper()

    assert peak_above_bound(path, copies) > 0


def test_too_many_loads_and_names_are_refused(path):
    path.write_bytes(short_rows())
    with pytest.raises(ValueError, match=f"at most {records.MAX_LOADS} loads"):
        logs.read_serving_log(path)
    path.write_bytes(many_names())
    with pytest.raises(ValueError, match=f"at most {records.MAX_ADAPTERS} adapters"):
        logs.read_serving_log(path)


def test_a_line_that_is_too_long_counts_as_one_and_hides_no_other(path):
    good = excerpts.LORAX.encode()
    path.write_bytes(b"x" * (3 * lines.MAX_LINE) + b"\n" + good + b"y" * (lines.MAX_LINE + 1))
    log = logs.read_serving_log(path)
    assert (len(log.loads), log.lines_used, log.lines_skipped) == (4, 7, 3)


@pytest.mark.parametrize("length", range(lines.MAX_LINE - 2, lines.MAX_LINE + 3))
def test_lines_around_the_bound(length):
    found = list(lines.read_lines(io.BytesIO(b"x" * length + b"\nend\n"), 10**9))
    assert found == ["x" * length if length < lines.MAX_LINE else None, "end"]


def test_nothing_is_read_beyond_the_size_that_a_file_had():
    file = io.BytesIO(b"one\ntwo\nthree\n")
    assert list(lines.read_lines(file, 8)) == ["one", "two"]
    assert file.tell() == 8
    assert list(lines.read_lines(io.BytesIO(b"x" * 100_000), 50_000)) == [None]


def test_a_log_that_grows_while_it_is_read_ends_where_it_ended(path, monkeypatch):
    path.write_bytes(excerpts.LORAX.encode())
    true_stamp = lines.stamp

    def growing(line):
        with open(path, "ab") as file:
            file.write(excerpts.LORAX.encode())
        return true_stamp(line)

    monkeypatch.setattr(lines, "stamp", growing)
    assert len(logs.read_serving_log(path).loads) == 4


def test_a_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(excerpts.LORAX.encode(),))
    writer.start()
    assert len(logs.read_serving_log(pipe).loads) == 4
    writer.join()
