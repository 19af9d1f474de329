"""Serving logs: what one load of each system is, its tier, its name, and what is left out."""

import io
import sys

import numpy as np
import pytest
import serving_excerpts as excerpts

from polar_jax import paging
from polar_jax.io import logs, read_paging_table
from polar_jax.io.logs import lines


@pytest.fixture
def read(tmp_path):
    def read_text(text, format="auto"):
        path = tmp_path / "server.log"
        path.write_bytes(text.encode())
        return logs.read_serving_log(path, format)

    return read_text


def told(log):
    """The loads as tuples with milliseconds to a microsecond."""
    return [(load.adapter, load.tier, round(load.ms, 3)) for load in log.loads]


def test_differences_of_counters_are_single_loads(read):
    log = read(excerpts.VLLM_COUNTERS)
    assert (log.format, log.lines_used, log.lines_skipped) == ("vllm", 7, 3)
    assert log.resolution_ms == 0
    assert told(log) == [
        ("dummy-0", "disk-to-host", 20.842),
        ("dummy-0", "host-to-device", 3.123),
        ("dummy-1", "disk-to-host", 8.904),
        ("dummy-1", "host-to-device", 3.063),
    ]
    # 49 loads lie between the second count and the 51st: no single load.
    assert log.notes == (
        "1 counter lines are no single load: the count before them is not in the log.",
    )


def test_counters_start_anew_with_a_server_and_belong_to_a_process(read):
    line = (
        "{}INFO 05-15 13:01:20 [w.py:1] Total loads from memory: {}. "
        "Total loading time from memory: {} seconds."
    )
    entries = [("", 7, 1.0), ("", 8, 1.5), ("", 1, 0.25), ("(Worker_TP1 pid=3) ", 1, 2e-3)]
    entries += [("", 2, "0.30"), ("(Worker_TP1 pid=3) ", 2, "2.5e-3"), ("", 3, 0.1)]
    log = read("\n".join(line.format(*entry) for entry in entries))
    assert [load.ms for load in log.loads] == pytest.approx([500, 250, 2, 50, 0.5])
    assert {load.adapter for load in log.loads} == {None}
    assert "2 counter lines are no single load" in log.notes[0]


def test_a_swap_while_serving_is_not_named_by_a_later_load(read):
    counter = "Total loads from {0}: {1}. Total loading time from {0}: {2} seconds."
    loaded = "INFO 05-15 13:01:20 [s.py:1] Loaded new LoRA adapter: name '{}', path 'x'"
    text = [counter.format("disk", 1, 1), counter.format("memory", 1, 0.5), loaded.format("a")]
    text += [counter.format("memory", 2, 0.75)]
    text += [counter.format("disk", 2, 3), counter.format("memory", 3, 1), loaded.format("b")]
    names = [load.adapter for load in read("\n".join(text)).loads]
    assert names == ["a", "a", None, "b", "b"]


def test_adapters_loaded_in_a_row_at_the_start_are_timed_by_stamps(read):
    log = read(excerpts.VLLM_START)
    assert told(log) == [("law", "disk-to-device", 2000.0), ("code", "disk-to-device", 0.0)]
    assert (log.lines_used, log.lines_skipped, log.resolution_ms) == (4, 4, 1000.0)
    # Neither the first nor the one after start-up has a start.
    assert "2 loads (disk-to-device) cannot be timed" in log.notes[0]
    assert "in steps of 1000 ms" in log.notes[1]


def test_a_request_in_between_breaks_the_row(read):
    row, access = excerpts.VLLM_START, 'INFO:     1.2.3.4:5 - "GET /health HTTP/1.1" 200 OK\n'
    first, second = row.index("(APIServer pid=5) INFO 03-02 11:03:40"), row.index("(EngineCore", 9)
    assert len(read(row).loads) == 2
    assert len(read(row[:first] + access + row[first:]).loads) == 1
    assert len(read(row[:second] + access + row[second:]).loads) == 1


def test_debug_lines_divide_a_load(read):
    log = read(excerpts.VLLM_DEBUG)
    assert told(log) == [("two", "disk-to-host", 140.0), ("two", "host-to-device", 15.0)]
    assert log.resolution_ms == pytest.approx(1e-6)
    assert "1 loads (disk-to-device) cannot be timed" in log.notes[0]
    assert "1 loads (host-to-device) cannot be timed" in log.notes[1]


def test_overlapping_loads_are_not_divided(read):
    # Another adapter is added before the first one's load ends.
    text = excerpts.VLLM_DEBUG.replace("Activating LoRA. int id: 2, slot index: 1", "{}").format(
        "Adding lora. Model id: 3, int id: 3"
    )
    assert told(read(text)) == [("two", "disk-to-device", 155.0)]


def test_one_load_without_a_start_is_an_error_that_says_so(read):
    with pytest.raises(ValueError, match=r"no load can be timed: 1 lines .*looked for \"Loaded"):
        read(excerpts.VLLM_ONE_LOAD)


def test_sglang_gives_time_and_size(read):
    log = read(excerpts.SGLANG)
    assert (log.format, log.lines_used, log.lines_skipped) == ("sglang", 4, 1)
    assert told(log) == [
        ("sql", "disk-to-host", 2000.0),
        ("mock_kant_r8", "disk-to-host", 1000.0),
    ]
    # 0.04 GiB less were free; the other adapter left the free memory as it was.
    assert [load.size_bytes for load in log.loads] == [round(0.04 * 2**30), None]


def test_sglang_ranks_are_timed_on_their_own_and_unfinished_loads_counted(read):
    start, end = excerpts.SGLANG.splitlines()[:2]
    other = [line.replace("TP0", "TP1").replace("10:00:0", "10:01:0") for line in (start, end)]
    log = read("\n".join([start, other[0], end, start]))
    assert told(log) == [("sql", "disk-to-host", 2000.0)]
    assert log.notes[0] == "2 loads start and never complete."


def test_lorax_times_what_was_waited_for(read):
    log = read(excerpts.LORAX)
    assert (log.format, log.lines_used, log.lines_skipped) == ("lorax", 7, 1)
    assert told(log) == [
        ("hub:org/law", "remote", 1250.0),
        ("hub:org/sql", "disk-to-device", 100.0),
        ("hub:org/law", "disk-to-device", 80.0),
        ("hub:org/sql", "disk-to-device", 60.0),
    ]
    assert "1 loads (disk-to-device) cannot be timed" in log.notes[0]
    assert "1 loads (remote) cannot be timed" in log.notes[1]


def test_lorax_writes_json_and_colours_too(read):
    json = [
        '{{"timestamp":"{}Z","level":"INFO","message":"adapter {} {}",'
        '"target":"lorax_router::loader","filename":"router/src/loader.rs","line_number":1}}'
    ][0]
    steps = [("12:40:01.5", "a", "downloaded"), ("12:40:01.75", "a", "loaded")]
    text = "\n".join(json.format(f"2024-05-07T{at}", *rest) for at, *rest in steps)
    colours = excerpts.LORAX.replace(" INFO ", " \x1b[32m INFO\x1b[0m \x1b[2m")
    colours = colours.replace("\n2024", "\n\x1b[2m2024").replace(": adapter", "\x1b[0m: adapter")
    assert told(read(text)) == [("a", "disk-to-device", 250.0)]
    assert told(read(colours)) == told(read(excerpts.LORAX))


def test_lorax_counts_a_failure_as_work_of_the_loader(read):
    failed = (
        "2024-05-07T12:40:01.400000Z  INFO lorax_router::loader: router/src/loader.rs:1: "
        "FAILED downloading adapter hub:org/none\n"
    )
    at = excerpts.LORAX.index("2024-05-07T12:40:01.45")
    log = read(excerpts.LORAX[:at] + failed + excerpts.LORAX[at:])
    assert ("hub:org/sql", "disk-to-device", 50.0) in told(log)


def test_a_client_s_csv_is_read_with_seconds_status_and_tiers(read):
    log = read(excerpts.CLIENT_CSV)
    assert (log.format, log.lines_used, log.lines_skipped) == ("client-csv", 4, 1)
    assert told(log) == [
        ("sql", "disk-to-device", 412.055),
        ("law", "disk-to-device", 30.1),
        ("sql", "disk-to-device", 29.8),
    ]
    other = "\ufeffLoRA Name;Tier;latency-ms;bytes\na;disk;5.5;10\na;memory;1e0;10\nb;floppy;1;1\n"
    log = read(other)
    assert told(log) == [("a", "disk-to-host", 5.5), ("a", "host-to-device", 1.0)]
    assert [load.size_bytes for load in log.loads] == [10, 10]
    assert log.lines_skipped == 1


@pytest.mark.parametrize("row", ["a", "a,b,c", "a,nan", "a,-1", "a,1_0", "a,1e300", ",1", '"a,1'])
def test_a_bad_line_of_a_csv_is_skipped_and_counted(read, row):
    log = read(f"adapter,ms\ngood,1\n{row}\n")
    assert (len(log.loads), log.lines_used, log.lines_skipped) == (1, 2, 1)


@pytest.mark.parametrize("head", ["", "prompt: '", "Received request cmpl-1: prompt: "])
def test_what_users_wrote_is_no_log_line(read, head):
    prompt = "INFO 05-10 10:46:14 [logger.py:1] {}Loaded new LoRA adapter: name 'x', path 'y'\n"
    log = read(excerpts.VLLM_START + prompt.format(head))
    assert log.lines_used == (5 if not head else 4)


@pytest.mark.parametrize(
    "forged",
    [
        "INFO 05-10 10:46:14 [l.py:1] prompt: '] Loaded new LoRA adapter: name 'x', path 'y'",
        'INFO 05-10 10:46:14 [l.py:1] prompt: "] Total loads from disk: 1. Total loading time '
        'from disk: 900 seconds.",',
        "[2025-05-10 10:46:14] Req(text='] LoRA adapter loading starts: x. avail mem=1 GB",
        '2024-05-07T12:40:02.5Z  INFO generate{parameters=P { stop: ["adapter x loaded"] }}: '
        "lorax_router::server: router/src/server.rs:1: Success",
        "2024-05-07T12:40:02.5Z  INFO generate{stop=lorax_router::loader: r.rs:1: adapter x loaded",
    ],
)
def test_what_users_wrote_forges_no_load(read, forged):
    for system in (excerpts.VLLM_START, excerpts.LORAX):
        plain, mixed = read(system), read(f"{system}{forged}\n")
        assert told(mixed) == told(plain)
        assert mixed.lines_skipped == plain.lines_skipped + 1


def test_a_year_ends_between_two_stamps_without_one(read):
    line = "INFO {} [s.py:1] Loaded new LoRA adapter: name '{}', path 'y'\n"
    text = line.format("12-31 23:59:59", "a") + line.format("01-01 00:00:02", "b")
    assert told(read(text)) == [("b", "disk-to-device", 3000.0)]
    # A clock that goes back a little is no new year.
    back = line.format("03-02 10:00:00", "a") + line.format("03-02 09:59:59", "b")
    with pytest.raises(ValueError, match="no load can be timed"):
        read(back)


@pytest.mark.parametrize(
    ("text", "us", "resolution_ms"),
    [
        ("INFO 07-15 10:11:12 [a.py:1]", 12_000_000, 1000.0),
        ("[2025-07-15 10:11:12.25 TP0] x", 12_250_000, 10.0),
        ("2025-07-15T10:11:12.123456789Z x", 12_123_456, 1e-6),
        ("2025-07-15 10:11:12,007 x", 12_007_000, 1.0),
    ],
)
def test_stamps(text, us, resolution_ms):
    found = lines.stamp(text)
    assert found is not None
    assert found.us % 60_000_000 == us
    assert found.resolution_ms == pytest.approx(resolution_ms)


@pytest.mark.parametrize(
    "text", ["", "INFO 13-15 10:11:12", "INFO 02-30 10:11:12", "1-02 03:04:05"]
)
def test_what_is_no_time_is_no_stamp(text):
    assert lines.stamp(text) is None


@pytest.mark.parametrize("kind", excerpts.ALL)
def test_the_table_is_that_of_the_csv_file(read, tmp_path, kind):
    log = read(excerpts.ALL[kind])
    table = logs.to_paging_table(log)
    path = tmp_path / "table.csv"
    path.write_text(logs.to_paging_csv(logs.select(log)))
    again = read_paging_table(path)
    assert (table.adapters, table.tier) == (again.adapters, again.tier)
    for field in ("mean_ms", "samples_ms", "sample_count", "size_bytes"):
        np.testing.assert_array_equal(getattr(table, field), getattr(again, field))


def test_tiers_are_summed_or_one_is_taken(read):
    log = read(excerpts.VLLM_COUNTERS)
    total = logs.to_paging_table(log)
    assert total.tier == "disk-to-host+host-to-device"
    assert total.mean_ms == pytest.approx([23.966, 11.967], abs=1e-3)
    assert total.samples_ms is None
    memory = logs.to_paging_table(log, "host-to-device")
    assert (memory.tier, memory.adapters) == ("host-to-device", ("dummy-0", "dummy-1"))
    assert memory.mean_ms == pytest.approx([3.123, 3.063], abs=1e-3)
    with pytest.raises(ValueError, match=r"tier remote must be one .*\(disk-to-host, host-to-dev"):
        logs.to_paging_table(log, "remote")
    with pytest.raises(ValueError, match=r"tier must be one of sum, disk-to-host, .*got 'disk'"):
        logs.to_paging_table(log, "disk")


def test_several_loads_of_one_tier_are_samples(read):
    table = logs.to_paging_table(read(excerpts.CLIENT_CSV))
    samples, count = paging.draw_arrays(table)
    assert table.adapters == ("sql", "law")
    np.testing.assert_allclose(samples, [[412.055, 29.8], [30.1, 0]], rtol=1e-6)
    assert count.tolist() == [2, 1]


def test_an_adapter_without_one_of_the_tiers_is_left_out_and_told(read):
    chosen = logs.select(read(excerpts.LORAX))
    assert chosen.times == {"hub:org/law": {"disk-to-device": [80.0], "remote": [1250.0]}}
    assert "Adapter 'hub:org/sql' is left out: not every tier was timed." in chosen.notes


def test_whole_loads_are_not_added_to_their_parts(read):
    text = "adapter,ms,tier\na,10,disk\na,2,memory\na,12,disk-to-device\nb,1,disk\n"
    chosen = logs.select(read(text))
    assert chosen.tiers == ("disk-to-host", "host-to-device")
    assert chosen.times == {"a": {"disk-to-host": [10.0], "host-to-device": [2.0]}}
    only_one_part = logs.select(read("adapter,ms,tier\na,10,disk\na,12,disk-to-device\n"))
    assert only_one_part.tiers == ("disk-to-device",)


def test_loads_without_names_are_one_adapter_or_left_out(read):
    counter = "Total loads from memory: {}. Total loading time from memory: {} seconds.\n"
    nameless = counter.format(1, 0.5) + counter.format(2, 0.75)
    table = logs.to_paging_table(read(nameless))
    assert (table.adapters, table.mean_ms.tolist()) == (("unnamed",), [375.0])
    disk = counter.replace("memory", "disk").format(1, 2)
    named = "INFO 05-15 13:01:20 [s.py:1] Loaded new LoRA adapter: name 'a', path 'x'\n"
    chosen = logs.select(read(nameless + disk + counter.format(3, 1.0) + named))
    assert list(chosen.times) == ["a"]
    assert "2 loads without a name are left out." in chosen.notes


def test_sizes_are_kept_where_every_adapter_has_one(read):
    assert logs.to_paging_table(read(excerpts.SGLANG)).size_bytes is None
    table = logs.to_paging_table(read("\n".join(excerpts.SGLANG.splitlines()[:2])))
    assert table.size_bytes is not None
    assert table.size_bytes.tolist() == [round(0.04 * 2**30)]


def test_times_below_the_resolution_of_the_stamps_are_refused_not_free(read):
    log = read(excerpts.VLLM_START.replace("11:03:40", "11:03:38"))
    assert [load.ms for load in log.loads] == [0.0, 0.0]
    with pytest.raises(ValueError, match="every load took less than the 1000 ms"):
        logs.to_paging_table(log)


@pytest.mark.parametrize("format", logs.FORMATS)
@pytest.mark.parametrize("text", ["", "\n\n", "INFO 05-10 10:46:14 [a.py:1] hello\n", "\0\xff" * 9])
def test_a_file_with_no_usable_line_says_what_was_looked_for(read, text, format):
    with pytest.raises(ValueError, match=r"server.log': none of \d+ lines can be used; looked"):
        read(text, format)


def test_a_given_format_reads_its_own_lines_alone(read):
    both = excerpts.LORAX + excerpts.SGLANG
    assert read(both).format == "lorax"
    assert read(both, "sglang").lines_skipped == len(excerpts.LORAX.splitlines()) + 1
    with pytest.raises(ValueError, match=r"looked for .Loaded new LoRA adapter"):
        read(both, "vllm")


def test_bad_paths_and_formats(tmp_path):
    with pytest.raises(ValueError, match=r"format must be one of auto, vllm, .*got 'tgi'"):
        logs.read_serving_log(tmp_path / "x", "tgi")
    with pytest.raises(FileNotFoundError):
        logs.read_serving_log(tmp_path / "x")
    with pytest.raises(IsADirectoryError):
        logs.read_serving_log(tmp_path)
    with pytest.raises(ValueError, match="must be a file or a pipe, got a device"):
        logs.read_serving_log("/dev/zero")
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b\x08\0\0")
    with pytest.raises(ValueError, match="got compressed data"):
        logs.read_serving_log(tmp_path / "x.gz")


def test_standard_input_is_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(excerpts.LORAX.encode())))
    assert len(logs.read_serving_log("-").loads) == 4
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input: must be open"):
        logs.read_serving_log("-")
