"""torch.save files: what torch wrote is read as torch reads it, what is hostile is named and never run."""

from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadFile
from lib_lora.files.tensors import read_header, read_tensors, tensor_reader

BASE = torch.randn(10, 20)
CONTENT = {
    "scalar": torch.tensor(4.0),
    "half": torch.randn(2, 3).half(),
    "brain": torch.randn(4).bfloat16(),
    "double": torch.randn(3).double(),
    "whole": torch.arange(5),
    "bool": torch.tensor([True, False, True]),
    "transposed": torch.randn(3, 4).T,
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "empty": torch.zeros(0, 4),
    "base": BASE,
    "slice of base": BASE[2:5, 3:9],
    "parameter": nn.Parameter(torch.randn(3)),
}


def same(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two.detach())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saved_is_read_as_it_was(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "x.pt"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    read = read_tensors(path)
    assert list(read) == list(CONTENT)
    assert all(same(read[name], tensor) for name, tensor in CONTENT.items())
    assert read["slice of base"].untyped_storage().nbytes() < BASE.untyped_storage().nbytes()
    header = read_header(path)
    assert header.shapes() == {name: tuple(t.shape) for name, t in CONTENT.items()}
    assert header.tensors["half"].dtype == "F16"


def test_eight_bit_floats(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5).to(torch.float8_e4m3fn), "b": torch.randn(2, 2).to(torch.float8_e5m2)}
    try:
        torch.save(tensors, tmp_path / "x.pt")
    except KeyError:
        pytest.skip("this torch cannot pickle 8-bit floats")
    read = read_tensors(tmp_path / "x.pt")
    assert all(read[n].dtype == t.dtype and torch.equal(read[n].float(), t.float()) for n, t in tensors.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_gives_its_state_dict_and_nothing_beside_it(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.ckpt"
    state = nn.Linear(3, 4).state_dict()
    optimizer = {"state": {0: {"moment": torch.ones(7)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    content = {"state_dict": state, "epoch": 3, "optimizer_states": [optimizer], "loops": None, "big": 1 << 70}
    content |= {"best": numpy.float32(0.5), "scores": numpy.zeros(3), "kinds": {torch.float16: torch.device("cpu")}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_tensors(path)
    assert read.keys() == {"weight", "bias"}
    assert all(same(read[name], tensor) for name, tensor in state.items())


def test_nested_names_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"string_to_param": {"*": torch.ones(2, 3)}, "step": 1, "unet": OrderedDict(a=torch.zeros(1))}, path)
    assert read_tensors(path).keys() == {"string_to_param.*", "unet.a"}


def test_a_list_is_numbered_up_and_down_with_the_text_encoder_beside_it(tmp_path: Path) -> None:
    unet, text = [torch.randn(8, 4), torch.randn(4, 8), torch.randn(16, 4), torch.randn(4, 8)], [torch.ones(3, 1)] * 2
    torch.save(unet, tmp_path / "my.style.pt")
    names = ["unet:0:up", "unet:0:down", "unet:1:up", "unet:1:down"]
    assert list(read_tensors(tmp_path / "my.style.pt")) == names
    torch.save(text, tmp_path / "my.style.text_encoder.pt", _use_new_zipfile_serialization=False)
    both = read_tensors(tmp_path / "my.style.pt")
    assert list(both) == [*names, "text_encoder:0:up", "text_encoder:0:down"]
    assert all(same(both[name], tensor) for name, tensor in zip(names, unet))
    assert read_tensors(tmp_path / "my.style.text_encoder.pt").keys() == {"text_encoder:0:up", "text_encoder:0:down"}
    (tmp_path / "my.style.text_encoder.pt").write_bytes(b"\x80\x02.")
    with pytest.raises(BadFile, match=r"my\.style\.text_encoder\.pt"):
        read_tensors(tmp_path / "my.style.pt")


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        assert same(read_tensors(tmp_path / name)["a"], torch.ones(2))


def test_one_tensor_is_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(4 << 20), "b": torch.ones(3)}, path)
    tracemalloc.start()
    with tensor_reader(path) as (_, read):
        assert same(read("b"), torch.ones(3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# Hostile pickles -------------------------------------------------------------------------------------------------


class Runs:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def zipped(path: Path, data: bytes, records: dict[str, bytes] | None = None, packing: int = zipfile.ZIP_STORED) -> Path:
    """A torch zip with this pickle."""
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, content in {"data.pkl": data, "version": b"3\n", **(records or {})}.items():
            file.writestr(f"archive/{name}", content)
    return path


def older(path: Path, data: bytes) -> Path:
    """A file of the older format with this pickle and no storages."""
    torch.save(None, path, _use_new_zipfile_serialization=False)
    head = path.read_bytes()
    path.write_bytes(head[: head.index(b"\x80\x02N.")] + data + b"\x80\x02].")
    return path


def refused(path: Path, fault: str) -> str:
    with pytest.raises(BadFile) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert fault in str(caught.value).replace(str(path), "")
    assert len(str(caught.value)) < 600
    return str(caught.value)


def hostile(canary: Path) -> dict[str, tuple[bytes, str]]:
    """`name: (pickle, what the message names)`; each would create `canary` if it were run."""
    touch = f"touch {canary}"
    return {
        "system": (pickle.dumps(Runs(os.system, touch), 2), f"{os.name}.system"),
        "protocol 4": (pickle.dumps({"a": Runs(os.system, touch)}, 4), f"{os.name}.system"),
        "eval": (pickle.dumps(Runs(eval, f"open({str(canary)!r}, 'w')"), 2), "eval"),
        "open": (pickle.dumps(Runs(open, str(canary), "w"), 4), "open"),
        "getattr": (pickle.dumps(Runs(getattr, {}, "__class__"), 4), "getattr"),
        "torch.load": (b"\x80\x02ctorch.serialization\nload\n(Vx\ntR.", "torch.serialization.load"),
        "nested name": (b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93.", "__globals__"),
        "instance": (b"(S'touch'\nios\nsystem\n.", "not a readable"),
        "protocol 0": (pickle.dumps(Runs(os.system, touch), 0), "not a readable"),
        "object": (b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00ao.", "os.system"),
        "extension": (b"\x80\x02\x82\x01.", "copyreg"),
        "state of a function": (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.",
            "sets the state",
        ),
        "setstate": (pickle.dumps(Runs(type, "X", (), {}), 2), "type"),
        "a list called": (b"\x80\x02](K\x01tR.", "which is no function"),
        "a text called": (b"\x80\x02X\x02\x00\x00\x00os)R.", "which is no function"),
    }


@pytest.mark.parametrize("case", list(hostile(Path("x"))))
@pytest.mark.parametrize("container", ["zip", "older"])
def test_nothing_is_run_and_the_global_is_named(tmp_path: Path, case: str, container: str) -> None:
    canary = tmp_path / "canary"
    data, fault = hostile(canary)[case]
    path = tmp_path / "x.pt"
    older(path, data) if container == "older" else zipped(path, data)
    refused(path, fault)
    assert not canary.exists()


def test_a_bare_pickle_is_not_run_either(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for protocol in range(6):
        path = tmp_path / f"{protocol}.pt"
        path.write_bytes(pickle.dumps(Runs(os.system, f"touch {canary}"), protocol))
        refused(path, "")
    assert not canary.exists()


def test_the_canary_would_be_touched(tmp_path: Path) -> None:
    """The hostile pickles are hostile: Python's own unpickler runs them."""
    canary = tmp_path / "canary"
    pickle.loads(hostile(canary)["system"][0])
    assert canary.exists()


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def tensor_pickle(offset: bytes = b"K\x00", shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85") -> bytes:
    """`{"a": a tensor}` over four float32 numbers."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(" + STORAGE + offset + shape + strides + b"\x89}tRs."


def test_the_handmade_tensor_is_sound(tmp_path: Path) -> None:
    numbers = torch.arange(4.0)
    path = zipped(tmp_path / "x.pt", tensor_pickle(), {"data/0": numbers.numpy().tobytes()})
    assert same(read_tensors(path)["a"], numbers)


HUGE = b"\x8a\x08" + struct.pack("<q", (1 << 62) - 1)
IMPOSSIBLE = {
    "offset past the end": tensor_pickle(offset=b"K\x01"),
    "negative offset": tensor_pickle(offset=b"J\xff\xff\xff\xff"),
    "too many numbers": tensor_pickle(shape=b"K\x05\x85"),
    "negative width": tensor_pickle(shape=b"J\xff\xff\xff\xff\x85"),
    "100 EB": tensor_pickle(shape=HUGE + b"\x85"),
    "overflowing shape": tensor_pickle(shape=HUGE * 3 + b"\x87", strides=b"K\x00K\x00K\x00\x87"),
    "repeated by stride 0": tensor_pickle(shape=HUGE + b"\x85", strides=b"K\x00\x85"),
    "overlapping rows": tensor_pickle(shape=b"K\x03K\x02\x86", strides=b"K\x01K\x01\x86"),
    "other number of strides": tensor_pickle(strides=b"K\x01K\x01\x86"),
    "true for a width": tensor_pickle(shape=b"\x88\x85"),
    "text for a shape": tensor_pickle(shape=b"X\x01\x00\x00\x00a"),
    "100,000 axes": tensor_pickle(shape=b"(" + b"K\x01" * 100_000 + b"t", strides=b"(" + b"K\x01" * 100_000 + b"t"),
    "no storage": b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(K\x01K\x00K\x04\x85K\x01\x85\x89}tRs.",
    "nonsense for a storage": b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(K\x01\x85QK\x00K\x04\x85K\x01\x85\x89}tRs.",
    "no tuple for a storage": b"\x80\x02}X\x01\x00\x00\x00aK\x01Qs.",
    "no arguments": b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b")Rs.",
    "half a character for a name": tensor_pickle().replace(b"X\x01\x00\x00\x00a", b"X\x03\x00\x00\x00\xed\xa0\x80", 1),
}


@pytest.mark.parametrize("case", list(IMPOSSIBLE))
def test_impossible_tensors_are_refused(tmp_path: Path, case: str) -> None:
    fault = "is not text" if "name" in case else "tensor 'a' cannot be" if TENSOR in IMPOSSIBLE[case] else "its pickle"
    refused(zipped(tmp_path / "x.pt", IMPOSSIBLE[case], {"data/0": bytes(16)}), fault)


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def laughs(depth: int) -> bytes:
    """A mapping of two mappings of two mappings ...: 2^depth paths from few bytes."""
    data = b"\x80\x02}X\x01\x00\x00\x00lNsq\x00"
    for i in range(depth):
        data += b"}(X\x01\x00\x00\x00ah" + bytes([i]) + b"X\x01\x00\x00\x00bh" + bytes([i]) + b"uq" + bytes([i + 1])
    return data + b"."


def broad(depth: int) -> bytes:
    """Mappings a few levels deep, each with its hundred names for the next: 100^depth paths."""
    names = [b"X\x02\x00\x00\x00%02d" % i for i in range(100)]
    data = b"\x80\x02}q\x00"
    for i in range(depth):
        data += b"}(" + b"".join(name + b"h" + bytes([i]) for name in names) + b"uq" + bytes([i + 1])
    return data + b"."


def hashed(depth: int) -> bytes:
    """A tuple of two tuples of two tuples ..., used as a key: hashing it takes 2^depth steps."""
    data = b"\x80\x02K\x01K\x02\x86q\x00"
    for i in range(depth):
        data += b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    return data + b"}h" + bytes([depth]) + b"Ns."


GREEDY = {
    "memo at 4 billion": b"\x80\x02Nr\xff\xff\xff\xff.",
    "8 EB of text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"a.",
    "4 GB of text": b"\x80\x02X\xff\xff\xff\xffa.",
    "4 GB of bytes": b"\x80\x03B\xff\xff\xff\xffa.",
    "8 EB of frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "2 GB number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "negative number's length": b"\x80\x02\x8b\xff\xff\xff\xff1.",
    "10,000 lists deep": nested(10_000),
    "deep mappings": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 5000 + b"N" + b"s" * 5000 + b".",
    "2^200 paths": laughs(200),
    "100^7 paths": broad(7),
    "2^200 hashes": hashed(200),
    "itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a million lists": b"\x80\x02" + b"]0" * 600_000 + b"N.",
    "empty": b"",
    "no stop": b"\x80\x02N",
    "stop at once": b"\x80\x02.",
    "mark taken": b"\x80\x02(.",
    "mark remembered": b"\x80\x02(q\x00.",
    "mark in a tuple": b"\x80\x02(\x85.",
    "no mark": b"\x80\x02Nt.",
    "memo never written": b"\x80\x02h\x07.",
    "key without a value": b"\x80\x02}(X\x01\x00\x00\x00au.",
    "items of a list": b"\x80\x02](X\x01\x00\x00\x00aNu.",
    "appended to a mapping": b"\x80\x02}Na.",
    "bad utf-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "endless name": b"\x80\x02c" + b"a" * 100_000,
    "protocol 99": b"\x80\x63N.",
}


@pytest.mark.parametrize("container", [zipped, older])
@pytest.mark.parametrize("case", list(GREEDY))
def test_greedy_pickles_cost_neither_memory_nor_time(tmp_path: Path, case: str, container: Any) -> None:
    path = container(tmp_path / "x.pt", GREEDY[case])
    start = time.perf_counter()
    tracemalloc.start()
    try:
        assert read_tensors(path) == {}  # a few are harmless: they hold nothing
    except BadFile as error:
        assert str(path) in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10 * path.stat().st_size + (4 << 20)
    assert time.perf_counter() - start < 20


def test_long_names_shared_by_many_tensors_do_not_multiply(tmp_path: Path) -> None:
    long = b"X" + struct.pack("<I", 1 << 19) + b"k" * (1 << 19)
    inner = b"}q\x01(" + b"".join(b"X\x04\x00\x00\x00%04dh\x02" % i for i in range(5000)) + b"u"
    tensor = TENSOR + b"(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89}tRq\x020"
    path = zipped(tmp_path / "x.pt", b"\x80\x02" + tensor + b"}" + long + inner + b"s.", {"data/0": bytes(16)})
    tracemalloc.start()
    refused(path, "nested too deep")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_storages_shared_by_many_tensors_do_not_multiply(tmp_path: Path) -> None:
    names = b"".join(b"X\x04\x00\x00\x00%04dh\x02" % i for i in range(5000))
    storage = STORAGE.replace(b"K\x04t", b"J" + struct.pack("<i", 1 << 18) + b"t")
    tensor = TENSOR + b"(" + storage + b"K\x00J" + struct.pack("<i", 1 << 18) + b"\x85K\x01\x85\x89}tRq\x020"
    path = zipped(tmp_path / "x.pt", b"\x80\x02" + tensor + b"}(" + names + b"u.", {"data/0": bytes(1 << 20)})
    with pytest.raises(BadFile, match="share their bytes so often"):
        read_header(path)


# Hostile zips ----------------------------------------------------------------------------------------------------


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.pt", tensor_pickle(), {"data/0": bytes(1 << 22)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    refused(path, "compressed")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "C:\\x", "archive/../../x", "lone", "a\x00b"])
def test_names_in_a_zip_are_no_paths(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "x.pt", tensor_pickle(), {"data/0": bytes(16)})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")
    before = set(tmp_path.rglob("*"))
    try:
        assert read_tensors(path).keys() == {"a"}
    except BadFile as error:
        assert "no folder" in str(error)
    assert set(tmp_path.rglob("*")) == before


def test_storage_keys_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    data = tensor_pickle().replace(b"X\x01\x00\x00\x000", b"X\x09\x00\x00\x00../secret")
    refused(zipped(tmp_path / "x.pt", data, {"data/0": bytes(16)}), "no record for storage '../secret'")


def test_a_record_twice_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.pt", tensor_pickle(), {"data/0": bytes(16)})
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data.pkl", b"N.")
    refused(path, "there twice")


def test_a_short_record_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "x.pt", tensor_pickle(), {"data/0": bytes(12)}), "tensor 'a' needs 16 of 12 bytes")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("docs/readme.txt", b"x")
    refused(tmp_path / "x.pt", "without data.pkl")


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "x.pt", tensor_pickle(), {"data/0": bytes(16), "byteorder": b"big"}), "big-endian")


@pytest.mark.parametrize("zip_format", [True, False])
def test_every_truncation_is_refused(tmp_path: Path, zip_format: bool) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.ones(4), "b": torch.zeros(2, 2)}, whole, _use_new_zipfile_serialization=zip_format)
    content = whole.read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path, "")


@pytest.mark.parametrize("field", ["length", "start", "both"])
def test_a_directory_that_claims_100_terabytes(tmp_path: Path, field: str) -> None:
    path = zipped(tmp_path / "x.pt", tensor_pickle(), {"data/0": bytes(16)})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x05\x06")
    huge = 100 << 40
    struct.pack_into("<2I", content, at + 12, 0xFFFFFFFF, 0xFFFFFFFF)
    length, start = (huge if field != "start" else 64), (huge if field != "length" else 0)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, length, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    path.write_bytes(bytes(content[:at]) + end64 + locator + bytes(content[at:]))
    tracemalloc.start()
    refused(path, "directory claims")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_zip64_is_read(tmp_path: Path) -> None:
    """Sizes and places in 64-bit fields, as torch writes them for files above 4 GiB."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {"data.pkl": tensor_pickle(), "data/0": torch.arange(4.0).numpy().tobytes()}.items():
            with file.open(f"archive/{name}", "w", force_zip64=True) as record:
                record.write(content)
    content = bytearray(path.read_bytes())
    at, first = content.rindex(b"PK\x05\x06"), content.index(b"PK\x01\x02")
    _, start = struct.unpack_from("<2I", content, at + 12)
    entries = b""
    for _ in range(2):  # every 32-bit field of the directory says "look in the zip64 field"
        fields = list(struct.unpack_from("<4s6H3I5H2I", content, first))
        name = bytes(content[first + 46 : first + 46 + fields[10]])
        extra = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        first += 46 + fields[10] + fields[11]
        fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
        fields[11] = len(extra)
        entries += struct.pack("<4s6H3I5H2I", *fields) + name + extra
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(entries), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(entries), 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(bytes(content[:start]) + entries + end64 + locator + end)
    assert zipfile.ZipFile(path).namelist() == ["archive/data.pkl", "archive/data/0"]
    assert same(read_tensors(path)["a"], torch.arange(4.0))
