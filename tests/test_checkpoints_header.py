"""Headers of safetensors files: what is accepted, and what is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sff_fast.checkpoints.chunks import cut
from sff_fast.checkpoints.header import read_header
from sff_fast.errors import CheckpointError


def write(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_the_header_says_what_the_library_reads(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.int8), "e": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", {"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    assert header.metadata == {"k": "v"}
    for entry in header.entries:
        raw = content[entry.begin : entry.end]
        assert raw == tensors[entry.name].numpy().tobytes()
        assert entry.shape == tuple(tensors[entry.name].shape)


def test_a_header_with_other_metadata_is_read_by_the_library(tmp_path):
    save_file({"a": torch.arange(5.0)}, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()[header.data :]
    (tmp_path / "y.safetensors").write_bytes(header.with_metadata({"ü": "\"'"}) + data)
    with safe_open(tmp_path / "y.safetensors", "pt") as file:
        assert file.metadata() == {"ü": "\"'"}
        assert torch.equal(file.get_tensor("a"), torch.arange(5.0))


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "its header is no JSON"),
        (b"[]", b"", "its header is no JSON object"),
        (b'{"a": 1, "a": 2}', b"", "a name appears twice"),
        (b"\xff\xfe", b"", "its header is no JSON"),
        ({"__metadata__": {"a": 1}}, b"", "its metadata does not map strings to strings"),
        ({"a": {"dtype": "F32"}}, b"", "the tensor 'a' lacks dtype, shape or data_offsets"),
        ({"a": 3}, b"", "the tensor 'a' lacks dtype, shape or data_offsets"),
        ({"a": tensor(offsets=(0, 8, 9))}, bytes(8), "the tensor 'a' lacks dtype, shape or data_offsets"),
        ({"a": tensor(shape=(-2,))}, bytes(8), "no whole number of at least 0"),
        ({"a": tensor(shape=(2.0,))}, bytes(8), "no whole number of at least 0"),
        ({"a": tensor(shape=(True, 2))}, bytes(8), "no whole number of at least 0"),
        ({"a": tensor(dtype="F31")}, bytes(8), "the unknown dtype 'F31'"),
        ({"a": tensor(shape=(3,))}, bytes(8), r"F32 of shape \[3\], takes 12 bytes, not 8"),
        ({"a": tensor(offsets=(8, 0))}, bytes(8), "takes 8 bytes, not -8"),
        ({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12), "the tensor 'b' begins at byte 4, expected 8"),
        ({"a": tensor(), "b": tensor(offsets=(12, 20))}, bytes(20), "the tensor 'b' begins at byte 12, expected 8"),
        ({"a": tensor()}, bytes(12), "its tensors end at byte 8 of 12 bytes"),
        ({"a": tensor()}, bytes(4), "its tensors end at byte 8 of 4 bytes"),
        ({"a": tensor(shape=(2**62, 2**62), offsets=(0, 8))}, bytes(8), "takes .* bytes, not 8"),
    ],
)
def test_a_damaged_header_is_refused_in_one_line(tmp_path, header, data, message):
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"1234567", (10**12).to_bytes(8, "little"), (99_999_999).to_bytes(8, "little")])
def test_a_file_that_is_shorter_than_its_header_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"its header would take \d+ of \d+ bytes"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [8, 24, 64, 1 << 20])
def test_pieces_cover_the_data_once_in_order_and_aligned(tmp_path, size):
    save_file(
        {
            "a": torch.arange(37.0),
            "b": torch.ones(5, dtype=torch.int8),
            "c": torch.ones(11, dtype=torch.float64),
            "d": torch.ones(9),
        },
        tmp_path / "x.safetensors",
    )
    header = read_header(tmp_path / "x.safetensors")
    at = header.data
    widths = {"F64": 8, "F32": 4, "I8": 1}
    for chunk in cut(header, size):
        assert chunk.begin == at
        assert 0 < chunk.end - chunk.begin <= size
        inside = chunk.begin
        for entry, begin, end in chunk.parts:
            assert begin == inside
            assert (begin - chunk.begin) % widths[entry.dtype] == 0
            assert (begin - entry.begin) % widths[entry.dtype] == 0
            inside = end
        assert inside == chunk.end
        at = chunk.end
    assert at == header.size
