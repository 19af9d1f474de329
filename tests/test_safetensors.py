"""Safetensors headers: what is read, that nothing behind them is, and what is refused."""

import io
import json
import os
import pathlib
import struct
import threading

import numpy as np
import pytest

from polar_jax.io import safetensors
from polar_jax.io.safetensors import TensorSpec

TWO = [TensorSpec("a", (2, 3), "F32"), TensorSpec("b", (4,), "BF16")]


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def saved(path: pathlib.Path, header: object, data: bytes = b"") -> pathlib.Path:
    """A file of a header, given as JSON, text or bytes, and of data."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_sizes_and_offsets_come_from_the_header(tmp_path: pathlib.Path) -> None:
    file = saved(
        tmp_path / "x",
        {
            "__metadata__": {"format": "pt", "note": 'quote " and \\ and {"b": 1}'},
            "late": entry("BF16", [2, 2], 12, 20),
            "empty": entry("F32", [0, 7], 12, 12),
            "early": entry("F32", [3], 0, 12),
        },
        b"x" * 20,
    )
    header = safetensors.read_header(file)
    assert header.offsets.tolist() == [[0, 12], [12, 12], [12, 20]]
    assert (header.data_bytes, header.num_tensors) == (20, 3)
    assert header.data_start + header.data_bytes == file.stat().st_size


@pytest.mark.parametrize("text", ["{}", ' {"__metadata__" : { } } '.strip(), "{ }  \n"])
def test_a_file_may_hold_no_tensor(tmp_path: pathlib.Path, text: str) -> None:
    header = safetensors.read_header(saved(tmp_path / "x", text))
    assert (header.num_tensors, header.data_bytes) == (0, 0)


def test_weights_are_never_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**40  # Sparse: nothing could read it.
    file = saved(tmp_path / "x", {"a": entry("U8", [size], 0, size)})
    start = file.stat().st_size
    os.truncate(file, start + size)
    asked = []

    class Counting(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size)
            return super().read(size)

    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *_, **__: Counting(path) if str(path) == str(file) else real(path),
    )
    assert safetensors.read_header(file).data_bytes == size
    assert sum(asked) == start


REFUSED = {
    "no length": (b"\1\2", "must begin with the header's length in 8 bytes, got a file of 2"),
    "nothing": (b"", "got a file of 0"),
    "length beyond the file": (struct.pack("<Q", 9) + b"{}", "at most 2 bytes in a file of 10"),
    "the largest length": (b"\xff" * 8 + b"{}", "got 18446744073709551615"),
    "no object": (struct.pack("<Q", 2) + b"[]", r"must be a JSON object, got b'\[\]'"),
    "not UTF-8": (struct.pack("<Q", 4) + b'{"\xff"', "must be UTF-8 text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_are_refused(tmp_path: pathlib.Path, case: str) -> None:
    content, said = REFUSED[case]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        safetensors.read_header(tmp_path / "x")


def entries(*texts: str) -> str:
    """A header's object of some entries."""
    return "{" + ",".join(texts) + "}"


A = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
BAD_HEADERS = {
    "cut short": ('{"a":{"dtype":"U8"', "a comma or a closing brace"),
    "a comma too much": (entries(A, ""), "a name in quotes"),
    "something behind": (entries(A) + "x", "must end with its object"),
    "a name twice": (entries(A, A), "got one name twice"),
    "a name twice in escapes": (
        entries(A, r'"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}'),
        "got one name twice",
    ),
    "a long name": (entries('"' + "a" * 5_000 + '":1'), "at most 4096 bytes"),
    "a field twice": (
        '{"a":{"dtype":"U8","dtype":"U8","data_offsets":[0,4]}}',
        "each field once",
    ),
    "a field missing": ('{"a":{"dtype":"U8","shape":[4]}}', "no more and no less"),
    "a field more": (entries(A.replace("}", ',"x":1}')), "no more and no less"),
    "another field": ('{"a":{"x":"U8","shape":[4]}}', "dtype, shape or data_offsets"),
    "an unknown dtype": (entries(A.replace("U8", "U9")), "must have a dtype of F4.*got U9"),
    "a negative offset": (entries(A.replace("[0,", "[-4,")), "dtype, shape or data_offsets"),
    "an offset in exponents": (entries(A.replace("[0,", "[0e0,")), "shape or data_offsets"),
    "a huge offset": (entries(A.replace("[0,", "[99999999999999999,")), "or data_offsets"),
    "offsets that run back": (entries(A.replace("[0,4]", "[4,0]")), "0 <= begin <= end"),
    "three offsets": (entries(A.replace("[0,4]", "[0,4,4]")), "begin, end"),
    "a size that is not the shape's": (entries(A.replace("[4]", "[5]")), "bytes of its shape"),
    "a shape that overflows": (
        entries(A.replace("[4]", str([2**53] * 16))),
        "bytes of its shape",
    ),
    "a nested shape": (entries(A.replace("[4]", "[[4]]")), "dtype, shape or data_offsets"),
    "an overlap": (entries(A, A.replace('"a"', '"b"').replace("[0,4]", "[2,6]")), "overlap"),
    "a gap": (entries(A, A.replace('"a"', '"b"').replace("[0,4]", "[5,9]")), "without gap"),
    "a gap at the start": (entries(A.replace("[0,4]", "[1,5]")), "ends at 0, the next begins at 1"),
    "less than the file": ('{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}', "end with the"),
    "more than the file": ('{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}', "end with the"),
    "metadata of numbers": (entries('"__metadata__":{"a":1}', A), "a text in quotes"),
    "metadata twice": (entries('"__metadata__":{}', '"__metadata__":{}', A), "got it twice"),
    "a control character": ('{"a\n":1}', "a name in quotes"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_headers_that_cannot_be_are_refused_in_one_line(tmp_path: pathlib.Path, case: str) -> None:
    header, said = BAD_HEADERS[case]
    file = saved(tmp_path / "x", header, b"data")
    with pytest.raises(ValueError, match=said) as caught:
        safetensors.read_header(file)
    assert str(caught.value).startswith(repr(str(file)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_headers_above_are_refused_for_what_is_changed_in_them(tmp_path: pathlib.Path) -> None:
    assert safetensors.read_header(saved(tmp_path / "x", entries(A), b"data")).data_bytes == 4


def test_a_header_above_the_limit_is_refused_though_the_file_has_it(
    tmp_path: pathlib.Path,
) -> None:
    length = safetensors.MAX_HEADER + 1
    file = tmp_path / "x"
    file.write_bytes(struct.pack("<Q", length))
    os.truncate(file, 8 + length)
    with pytest.raises(ValueError, match=f"at most {safetensors.MAX_HEADER} bytes"):
        safetensors.read_header(file)


def test_what_is_no_file_is_an_os_error_at_once(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        safetensors.read_header(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        safetensors.read_header(tmp_path)
    # A pipe that nobody writes to would be waited for without end.
    os.mkfifo(tmp_path / "pipe")
    caught: list[OSError] = []

    def read() -> None:
        try:
            safetensors.read_header(tmp_path / "pipe")
        except OSError as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert "must be a regular file" in str(caught)


def test_written_files_are_read_back_and_padded_as_the_reference_does() -> None:
    out = io.BytesIO()
    pieces = [b"x" * 20, b"", b"y" * 12]
    counts = list(safetensors.write(out, TWO, pieces, {"k": "v"}))
    assert counts[-1] == len(out.getvalue())
    assert len(safetensors.header_bytes(TWO, {})) % 8 == 0
    assert out.getvalue()[counts[0] :] == b"x" * 20 + b"y" * 12


def test_pieces_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 bytes more"):
        list(safetensors.write(io.BytesIO(), TWO, [b"x" * 33]))
    with pytest.raises(ValueError, match="got 1 bytes less"):
        list(safetensors.write(io.BytesIO(), TWO, [b"x" * 31]))


def test_the_reference_implementation_reads_what_we_write_and_we_what_it_writes(
    tmp_path: pathlib.Path,
) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    values = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(4, dtype=np.uint16),
        "none": np.zeros((0, 3), np.float64),
    }
    reference.save_file(values, tmp_path / "theirs", metadata={"format": "pt"})
    header = safetensors.read_header(tmp_path / "theirs")
    assert header.data_bytes == sum(value.nbytes for value in values.values())
    assert header.num_tensors == 3
    tensors = [TensorSpec("b", (2, 3), "F32"), TensorSpec("a", (4,), "U16")]
    with open(tmp_path / "ours", "wb") as file:
        list(safetensors.write(file, tensors, [values["b"].tobytes(), values["a"].tobytes()]))
    loaded = reference.load_file(tmp_path / "ours")
    for name in ("a", "b"):
        np.testing.assert_array_equal(loaded[name], values[name])
