"""safetensors: header faults named, reproducible atomic writes, agreement with the reference library."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_lora.errors import BadFile
from lib_lora.files import tensors as module
from lib_lora.files.tensors import read_header, read_tensors, write_tensors

CONTENT = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "single": torch.randn(3, 1, 2),
    "brain": torch.randn(5).bfloat16(),
    "scalar": torch.tensor(4.0),
    "empty": torch.zeros(0, 3),
    "whole": torch.tensor([1, 2]),
    "transposed": torch.randn(4, 3).T,
}


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_written_files_equal_the_reference_librarys_reading(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "sub" / "x.safetensors"
    write_tensors(path, CONTENT, {"b": "2", "a": "1 ü"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"a": "1 ü", "b": "2"}
        assert set(file.keys()) == set(CONTENT)
        assert all(torch.equal(file.get_tensor(k), t) for k, t in CONTENT.items())
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_reads_what_the_reference_library_wrote(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({k: t.contiguous() for k, t in CONTENT.items()}, path, {"a": "1"})
    read = read_tensors(path)
    assert read.keys() == CONTENT.keys()
    assert all(torch.equal(read[k], t) and read[k].dtype == t.dtype for k, t in CONTENT.items())
    assert read_tensors(path, ["half"]).keys() == {"half"}
    header = read_header(path)
    assert header.metadata == {"a": "1"}
    assert header.shapes()["single"] == (3, 1, 2)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    write_tensors(one, CONTENT, {"a": "1", "b": "2"})
    write_tensors(two, dict(reversed(CONTENT.items())), {"b": "2", "a": "1"})
    assert one.read_bytes() == two.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadFile, match="No space left"):
        write_tensors(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "only 0 bytes"),
        (b"1234567", "only 7 bytes"),
        (raw({}, length=1 << 60), "header claims 1152921504606846976 bytes"),
        (raw(b"{nonsense"), "not JSON"),
        (raw(b"\xff\xfe"), "not JSON"),
        (raw(b"[" * 100_000), "not JSON"),
        (raw([1]), "JSON list"),
        (raw({"__metadata__": 3}), "__metadata__"),
        (raw({"a": 3}), "'a' lacks"),
        (raw({"a": {**ENTRY, "dtype": "F7"}}), "unknown dtype 'F7'"),
        (raw({"a": {**ENTRY, "dtype": []}}), "unknown dtype"),
        (raw({"a": {**ENTRY, "shape": [-2]}}), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": ["2"]}}), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": [3]}}, b"12345678"), "8 bytes where its shape"),
        (raw({"a": ENTRY}, b"1234567"), "cut off: tensor 'a' ends at byte 8 of 7"),
    ],
)
def test_faults_are_named_with_the_file(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile, match="bad.safetensors") as caught:
        read_tensors(path)
    assert fault in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot read .*none"):
        read_header(tmp_path / "none")


def test_unstorable_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="complex64"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(2, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(4), "b": torch.ones(2, 2)}, {"k": "v"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert isinstance(module.read_tensors(path), dict)
    except BadFile as error:
        assert str(path) in str(error)
