"""safetensors: header faults named, reproducible atomic writes, agreement with the reference library."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import tracemalloc
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
        (raw({}, length=100 << 40), "header claims 109951162777600 bytes"),
        (raw({}, length=(1 << 64) - 1), "header claims 18446744073709551615 bytes"),
        (raw(b"[" * 100_000), "not JSON"),
        (raw(b'{"a":' * 100_000), "not JSON"),
        (raw(b'{"a":' + b"9" * 5000 + b"}"), "header"),
        (raw(b"{}\0"), "not JSON"),
        (raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', b"12345678"), "'a' twice"),
        (raw(b'{"__metadata__":{"x":"1","x":"2"}}'), "'x' twice"),
        (raw(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', b"12345678"), "'dtype' twice"),
        (raw({"__metadata__": {"x": 3}}), "value of 'x' in its __metadata__ is not text"),
        (raw({"__metadata__": {"x": {"y": "z"}}}), "value of 'x' in its __metadata__ is not text"),
        (raw({"__metadata__": {"x": "\ud800"}}), "is not text"),
        (raw({"\udfff": ENTRY}, b"12345678"), "is not text"),
        (raw({"a": {**ENTRY, "shape": [-1, -2]}}, b"12345678"), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": [1.0, 2]}}, b"12345678"), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": [True, 2]}}, b"12345678"), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": {"2": 1}}}, b"12345678"), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": 2}}, b"12345678"), "'a' lacks"),
        (raw({"a": {**ENTRY, "shape": [None, 2]}}, b"12345678"), "impossible shape"),
        (raw({"a": {**ENTRY, "data_offsets": [0, None]}}, b"12345678"), "impossible shape or place (None"),
        (raw({"a": {**ENTRY, "shape": [1] * 1000 + [2]}}, b"12345678"), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": [10**25]}}), "impossible shape"),
        (raw({"a": {**ENTRY, "shape": [1 << 40, 1 << 40]}}), "'a' cannot be"),
        (raw({"a": {**ENTRY, "shape": [1 << 40] * 20}}), "'a' cannot be"),
        (raw({"a": {**ENTRY, "shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}}), "'a' cannot be"),
        (raw({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"12345678"), "'a' has -8 bytes"),
        (raw({"a": {**ENTRY, "data_offsets": [0, 8, 9]}}, b"12345678"), "'a' lacks"),
        (raw({"a": {**ENTRY, "data_offsets": [-8, 0]}}, b"12345678"), "impossible shape or place"),
        (raw({"a": {**ENTRY, "data_offsets": [0, 1 << 70]}}, b"12345678"), "impossible shape or place"),
        (raw({"a": ENTRY, "b": ENTRY}, b"12345678"), "'b' overlaps another"),
        (raw({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, b"123456789012"), "'b' overlaps another"),
        (raw({"a": {**ENTRY, "data_offsets": [4, 12]}}, b"123456789012"), "'a' lies behind a hole"),
        (raw({"a": ENTRY}, b"123456789"), "its tensors end at byte 8, its data at 9"),
        (raw({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12"), "shape needs 1.5"),
        (raw({"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}, b"12"), "no dtype for 'F8_E8M0'"),
        (raw({"x" * 100_000: 3}), "lacks"),
    ],
)
def test_faults_are_named_with_the_file(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match="bad.safetensors") as caught:
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(content) + (1 << 20)
    finally:
        tracemalloc.stop()
    assert fault in str(caught.value).replace(str(path), "")
    assert len(str(caught.value)) < 600


def test_tensors_may_lie_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    late, early = {**ENTRY, "data_offsets": [8, 16]}, ENTRY
    path.write_bytes(raw({"late": late, "early": early}, struct.pack("<4f", 1, 2, 3, 4)))
    read = read_tensors(path)
    assert read["late"].tolist() == [3, 4] and read["early"].tolist() == [1, 2]


def test_a_bool_is_true_or_false_whatever_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}, b"\0\1\xff"))
    assert read_tensors(path)["a"].tolist() == [False, True, True]


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    folder, pipe, loop = (tmp_path / f"{name}.safetensors" for name in ("folder", "pipe", "loop"))
    folder.mkdir()
    with pytest.raises(BadFile, match="cannot read .*folder.safetensors: it is a folder or a device"):
        read_header(folder)
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        with pytest.raises(BadFile, match="cannot read .*pipe.safetensors: it is a folder or a device"):
            read_header(pipe)
        loop.symlink_to(loop)
        with pytest.raises(BadFile, match="cannot read .*loop.safetensors: Too many levels"):
            read_header(loop)
    for name in ("a\0b", "x" * 5000, "\ud800"):
        with pytest.raises(BadFile, match="cannot read"):
            read_header(str(tmp_path / name))


def test_a_file_one_may_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})

    def refuse(name: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("builtins.open", refuse)  # tests may run as root, who may read everything
    with pytest.raises(BadFile, match=r"cannot read .*x\.safetensors: Permission denied; check"):
        read_tensors(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2), "b": torch.ones(50_000)})
    with module.tensor_reader(path) as (_, read):
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(BadFile, match=r"x\.safetensors .*became shorter while it was read.* \(tensor 'b'\)"):
            read("b")


def test_a_disk_that_fails_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})

    class Failing(io.FileIO):
        def readinto(self, _: object) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", lambda name, mode: Failing(name, mode))
    with pytest.raises(BadFile, match=r"x\.safetensors .*Input/output error"):
        read_header(path)


def test_a_sparse_giant_is_refused_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    giant = 1 << 43  # 8 TiB of zeros that take no room on disk
    path.write_bytes(raw({"a": {"dtype": "U8", "shape": [giant], "data_offsets": [0, giant]}}))
    try:
        os.truncate(path, path.stat().st_size + giant)
    except OSError:
        pytest.skip("this file system has no files so large")
    assert read_header(path).tensors["a"].nbytes == giant
    with pytest.raises(BadFile, match=r"x\.safetensors .*8796093022208 bytes .* are more than any tensor"):
        read_tensors(path)


def test_a_tensor_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(1000)})

    def none_left(length: int) -> bytearray:
        if length == 4000:
            raise MemoryError
        return bytearray(length)

    monkeypatch.setattr("lib_lora.files.header.bytearray", none_left, raising=False)
    with pytest.raises(BadFile, match=r"x\.safetensors .*no memory for the 4000 bytes"):
        read_tensors(path)


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


def test_two_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    """Two tabs of a page save the same captions: one of both is there in the end, whole."""
    path = tmp_path / "caption.txt"
    with module.atomic_file(path) as first:
        first.write(b"a long caption of the first tab")
        thread = threading.Thread(target=_write, args=(path, b"short"))
        thread.start()
        thread.join()
        assert path.read_bytes() == b"short"
    assert path.read_bytes() == b"a long caption of the first tab"
    assert [found.name for found in tmp_path.iterdir()] == ["caption.txt"]


def _write(path: Path, data: bytes) -> None:
    with module.atomic_file(path) as file:
        file.write(data)


def test_a_name_as_long_as_they_can_be_is_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "\u72d7" * 85, "\U0001f436" * 63):
        _write(tmp_path / name, b"x")
    assert len(list(tmp_path.iterdir())) == 3
