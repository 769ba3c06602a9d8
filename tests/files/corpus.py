"""Small network files of every dialect and type, a model that takes them, ways to damage them, and what must hold.

Used by test_fuzz.py, which draws damages with hypothesis, and by benchmarks/fuzz.py, which draws them for hours.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig, BadFile, LoraError, ShapeMismatch, UnknownFormat
from lib_lora.files.codec import base_versions, read_network, read_outline
from lib_lora.files.headline import read_headline
from lib_lora.files.tensors import TensorInfo, file_dtype, layout, tensor_bytes
from lib_lora.keys.layer_key import TE1, UNET, LayerKey
from lib_lora.networks import registry
from lib_lora.networks.base import LayerSpec
from lib_lora.patch.patcher import Patcher
from lib_lora.ports import Slot
from tests.keys.dialects import DIALECTS, Target
from tests.patch.bare import Bare, bits, loaded

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
FIRST = "down_blocks.0.attentions.0.transformer_blocks.0"
WORDS = "text_model.encoder.layers.0"
LINEAR = {f"{BLOCK}.attn1.to_q": (16, 16), f"{BLOCK}.attn2.to_k": (16, 768), f"{FIRST}.attn1.to_q": (16, 16)}
LINEAR |= {f"{FIRST}.attn1.to_k": (16, 16), "time_embedding.linear_1": (32, 16)}
CONVOLUTIONS = {"down_blocks.0.resnets.0.conv1": (8, 8, 3, 3), "mid_block.attentions.0.proj_in": (16, 16, 1, 1)}
CONVOLUTIONS |= {"conv_in": (16, 4, 3, 3)}
FUSED = ("q_proj", "k_proj", "v_proj")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES += [torch.int64, torch.int32, torch.uint8, torch.bool]
EIGHT_BIT = [getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)]
DTYPES += EIGHT_BIT  # torch 2.1 cannot pickle them
SPECIAL = [0.0, -0.0, -1.0, 1e-45, 1e-8, 6e4, 7e4, 1e20, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]
SIZES = [0, 1, 2, 3, 4, 8, 9, 15, 16, 17, 768, 4096]
FORMS = ("safetensors", "zip", "older")


@dataclass
class Seed:
    """The content of one file. `form` is one of FORMS; `beside` are small files that lie beside it."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    form: str = "safetensors"
    as_list: bool = False
    beside: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Put it into `folder`; returns the network file."""
        for name, content in self.beside.items():
            (folder / name).write_bytes(content)
        path = folder / ("adapter_model" if self.beside else "x")
        if self.form == "safetensors":
            path = path.with_suffix(".safetensors")
            infos = {name: TensorInfo(file_dtype(t.dtype), tuple(t.shape)) for name, t in self.tensors.items()}
            order, head = layout(infos, self.metadata)
            path.write_bytes(head + b"".join(tensor_bytes(self.tensors[name]) for name in order))
        else:
            path = path.with_suffix(".pt")
            tensors = {name: t.half() if t.dtype in EIGHT_BIT else t for name, t in self.tensors.items()}
            content = list(tensors.values()) if self.as_list else tensors
            torch.save(content, path, _use_new_zipfile_serialization=self.form == "zip")
        return path


def small_model(dtype: torch.dtype) -> Bare:
    """Some of SD1's layers, in small: Linear, convolutions (one of an inpainting model), norms, fused q/k/v."""
    generator = torch.Generator().manual_seed(0)
    modules: dict[LayerKey, nn.Module] = {}
    for path, (out, width) in LINEAR.items():
        modules[LayerKey(UNET, path)] = nn.Linear(width, out, bias=path.endswith("linear_1"))
    for path, (out, width, size, _) in CONVOLUTIONS.items():
        modules[LayerKey(UNET, path)] = nn.Conv2d(9 if path == "conv_in" else width, out, size)
    modules[LayerKey(UNET, "mid_block.attentions.0.norm")] = nn.GroupNorm(4, 16)
    modules[LayerKey(TE1, f"{WORDS}.layer_norm1")] = nn.LayerNorm(16)
    modules[LayerKey(TE1, f"{WORDS}.mlp.fc1")] = nn.Linear(16, 32)
    fused = nn.MultiheadAttention(16, 2)
    more = {
        LayerKey(TE1, f"{WORDS}.self_attn.{name}"): Slot(
            fused, "in_proj_weight", "in_proj_bias", slice(16 * i, 16 * i + 16)
        )
        for i, name in enumerate(FUSED)
    }
    for module in (*modules.values(), fused):
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).mul_(0.1)
        module.to(dtype)
    return Bare(modules, more=more)


def targets() -> list[tuple[LayerKey, tuple[int, ...]]]:
    """Every layer of the model with the shape that networks for it have."""
    found = [(LayerKey(UNET, path), shape) for path, shape in {**LINEAR, **CONVOLUTIONS}.items()]
    found += [(LayerKey(TE1, f"{WORDS}.self_attn.{name}"), (16, 16)) for name in FUSED]
    found += [(LayerKey(TE1, f"{WORDS}.mlp.fc1"), (32, 16)), (LayerKey(TE1, f"{WORDS}.layer_norm1"), (16,))]
    return [*found, (LayerKey(UNET, "mid_block.attentions.0.norm"), (16,))]


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random numbers as factors have them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(0.1)


def corpus() -> dict[str, Seed]:
    """One file of each dialect, of each network type and modifier, of each container, and of bundled embeddings."""
    found = {f"dialect: {name}": Seed(dict(_dialect(name))) for name in DIALECTS}
    found |= {f"type: {cls.kind}": Seed(dict(_type(cls.kind))) for cls in registry.TYPES if dict(_type(cls.kind))}
    lora = dict(_type("lora"))
    for name, extra in _modifiers().items():
        found[f"modifier: {name}"] = Seed({**lora, **extra})
    found["set weight"] = Seed({_kohya(key) + ".set_weight": numbers(shape, 1) for key, shape in targets()})
    found["bundle"] = Seed({**lora, "bundle_emb.cat.clip_l": numbers((2, 16), 1), **_webui_embedding()})
    found["numbered"] = Seed(_numbered(), {"unet:0:rank": "2", "<cat>": "<embed>"})
    config = json.dumps({"r": 2, "lora_alpha": 4, "peft_type": "LORA", "use_rslora": True}).encode()
    found["peft with a configuration"] = Seed(dict(_dialect("PEFT")), beside={"adapter_config.json": config})
    for form in ("zip", "older"):
        found[f"kohya, {form}"] = Seed(lora, form=form)
        found[f"list, {form}"] = Seed({k: t for k, t in _numbered().items() if ":" in k}, form=form, as_list=True)
    return found


def _kohya(key: LayerKey) -> str:
    return ("lora_unet_" if key.part == UNET else "lora_te_") + key.flat


def _dialect(name: str) -> Iterator[tuple[str, Tensor]]:
    for i, (key, shape) in enumerate(targets()):
        if key.part == UNET or name not in ("LyCORIS wrapper", "kohya OFT"):
            for tensor, size in DIALECTS[name](Target("sd1", key.part, key.path, shape)):
                yield tensor, numbers(size, i) if size else torch.tensor(1.5)


def _type(kind: str) -> Iterator[tuple[str, Tensor]]:
    for i, (key, shape) in enumerate(targets()):
        try:
            layer = registry.by_kind(kind).init(LayerSpec(shape, 2, 1.5))
        except (BadConfig, ShapeMismatch, ValueError):
            continue  # a type that this layer cannot have
        for name, tensor in layer.to_tensors().items():
            factor = tensor.is_floating_point() and tensor.numel() > 1
            yield f"{_kohya(key)}.{name}", numbers(tuple(tensor.shape), i) if factor else tensor


def _modifiers() -> dict[str, dict[str, Tensor]]:
    made: dict[str, Callable[[tuple[int, ...]], dict[str, Tensor]]] = {
        "dora": lambda shape: {"dora_scale": numbers((shape[0], *(1,) * (len(shape) - 1)), 5).abs()},
        "dora, inputs": lambda shape: {"dora_scale": numbers((1, shape[1], *(1,) * (len(shape) - 2)), 5).abs()},
        "bias": lambda shape: {"diff_b": numbers(shape[:1], 5)},
        "set bias": lambda shape: {"set_bias": numbers(shape[:1], 5)},
        "up bias": lambda shape: {"lora_up.bias": numbers(shape[:1], 5)},
        "scalar": lambda shape: {"scalar": torch.tensor(0.7)},
        "sparse": lambda shape: {
            "bias_indices": torch.tensor([[0, 1], [1, 2]]),
            "bias_values": numbers((2,), 5),
            "bias_size": torch.tensor([shape[0], shape[1]]),
        },
    }
    layers = [(key, shape) for key, shape in targets() if len(shape) > 1]
    return {
        name: {f"{_kohya(key)}.{n}": t for key, shape in layers for n, t in make(shape).items()}
        for name, make in made.items()
    }


def _webui_embedding() -> dict[str, Tensor]:
    return {"bundle_emb.dog.string_to_param.*": numbers((3, 16), 2), "bundle_emb.cat.clip_g": numbers((2, 20), 3)}


def _numbered() -> dict[str, Tensor]:
    tensors = {}
    for group, count in (("unet", 2), ("text_encoder", 3)):
        for i in range(count):
            tensors[f"{group}:{i}:up"], tensors[f"{group}:{i}:down"] = numbers((16, 2), i), numbers((2, 16), i + 9)
    return {**tensors, "<cat>": numbers((16,), 4)}


# Damages ---------------------------------------------------------------------------------------------------------

Tensors = dict[str, Tensor]
DIGITS = re.compile(rb"\d+")


def damaged(seed: Seed, rng: random.Random, vocabulary: list[str]) -> Seed:
    """A copy of the content with one to three damages; `vocabulary` are names that tensors may get."""
    tensors = dict(seed.tensors)
    for _ in range(rng.randint(1, 3)):
        if tensors:
            name = rng.choice(sorted(tensors))
            rng.choice(DAMAGES)(rng, tensors, name, vocabulary)
    metadata = dict(seed.metadata)
    if rng.random() < 0.2:
        key = rng.choice(["ss_output_name", "sshs_model_hash", "<cat>", "lora_adapter_metadata", "unet:0:rank", "ß"])
        metadata[key] = rng.choice(
            ["", "x" * 1000, "{", "[]", "{}", '{"unet":{"r":0}}', "<embed>", "\0", "1e999", "-1"]
        )
    beside = dict(seed.beside)
    for file in beside:
        if rng.random() < 0.5:
            beside[file] = broken(beside[file], rng)
    return Seed(tensors, metadata, seed.form, seed.as_list, beside)


def broken(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four damages."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), rng.choice([16, 4096, 1 << 30])) or 1)
        kind = rng.randrange(7)
        if not data or kind == 0:
            data[at:at] = rng.randbytes(rng.choice([1, 8, 100]))
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at : at + 8] = rng.choice([b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7])
        elif kind == 3:
            del data[at : at + rng.choice([1, 2, 8, 1000, 1 << 30])]
        elif kind == 4:
            start = rng.randrange(len(data))
            data[at:at] = data[start : start + rng.choice([4, 64, 300])]
        elif found := DIGITS.search(data, at):
            value = rng.choice([b"0", b"1", b"2", b"17", b"-1", b"99999999", b"9" * 30, b"1.5", b"null", b'"a"', b"[]"])
            data[found.start() : found.end()] = value
    return bytes(data)


def _poison(rng: random.Random, tensors: Tensors, name: str, _: list[str]) -> None:
    tensor = tensors[name].clone()
    if tensor.numel() and tensor.is_floating_point() and tensor.element_size() > 1:
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(SPECIAL)
    tensors[name] = tensor


def _scale(rng: random.Random, tensors: Tensors, name: str, _: list[str]) -> None:
    if tensors[name].is_floating_point() and tensors[name].element_size() > 1:
        tensors[name] = tensors[name] * rng.choice([0.0, -1.0, 1e3, 1e6, 1e15, 1e30])


def _reshape(rng: random.Random, tensors: Tensors, name: str, _: list[str]) -> None:
    shape = list(tensors[name].shape)
    kind = rng.randrange(5)
    if kind == 0:
        shape.insert(rng.randint(0, len(shape)), rng.choice([1, 1, 1, 0, 2]))
    elif kind == 1 and shape:
        shape.pop(rng.randrange(len(shape)))
    elif kind == 2:
        rng.shuffle(shape)
    elif kind == 3:
        shape = [1] * rng.randint(0, 30)
    elif shape:
        shape[rng.randrange(len(shape))] = rng.choice(SIZES)
    if _affordable(shape):
        tensors[name] = numbers(tuple(shape), 7).to(tensors[name].dtype)


def _cast(rng: random.Random, tensors: Tensors, name: str, _: list[str]) -> None:
    tensors[name] = tensors[name].to(rng.choice(DTYPES))


def _rename(rng: random.Random, tensors: Tensors, name: str, vocabulary: list[str]) -> None:
    tensor = tensors.pop(name)
    module, _, own = name.partition(".")
    other, _, ending = rng.choice(vocabulary).partition(".")
    names = [f"{module}.{ending}", f"{other}.{own}", f"{module}.{own}.weight", name.upper(), own, "", "ü\n" + name]
    tensors[rng.choice(names)] = tensor


def _drop(_rng: random.Random, tensors: Tensors, name: str, _: list[str]) -> None:
    del tensors[name]


def _add(rng: random.Random, tensors: Tensors, name: str, vocabulary: list[str]) -> None:
    module = name.partition(".")[0]
    for ending in rng.sample(vocabulary, min(len(vocabulary), rng.randint(1, 4))):
        shape = [rng.choice(SIZES[:-2]) for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 4]))]
        if _affordable(shape):
            tensors[f"{module}.{ending.partition('.')[2]}"] = numbers(tuple(shape), rng.randrange(99))


def _affordable(shape: list[int]) -> bool:
    total = 1
    for width in shape:
        total *= max(width, 1)
    return total <= 1 << 20


DAMAGES = (_poison, _poison, _scale, _scale, _reshape, _reshape, _reshape, _cast, _rename, _rename, _drop, _add, _add)


# What must hold --------------------------------------------------------------------------------------------------


def outcome(path: Path, dtype: torch.dtype, strength: float) -> str:
    """Read a file every way and apply it; returns what became of it. Raises AssertionError for what must not be."""
    headline = read_headline(path)
    try:
        outline = read_outline(path)
        base_versions(outline)
    except LoraError:
        outline = None
    try:
        network = read_network(path)
    except (BadFile, UnknownFormat) as error:
        assert path.stem in str(error), f"the message does not name the file: {error}"
        return type(error).__name__
    assert not headline.fault, f"the quick look refuses what can be read: {headline.fault}"
    assert outline is not None and outline.layers.keys() == network.layers.keys(), "the outline is another network"
    assert base_versions(outline) == base_versions(network)
    model = small_model(dtype)
    parameters = {id(p): p for m in _modules(model) for p in m.parameters()}
    before = {i: bits(p).clone() for i, p in parameters.items()}
    patcher = Patcher()
    report = patcher.apply(model, [loaded(network, te=strength, unet=strength)])
    for module in _modules(model):
        for name, parameter in module.named_parameters():
            assert bool(torch.isfinite(parameter).all()), f"{type(module).__name__}.{name} is not finite: {report}"
    patcher.restore()
    after = {id(p): p for m in _modules(model) for p in m.parameters()}
    assert after.keys() == before.keys(), "parameters came or went"
    assert all(torch.equal(bits(after[i]), before[i]) for i in before), "the model is not what it was"
    row = report.networks[0]
    return "applied" if row.applied else "nothing applied"


def _modules(model: Bare) -> list[nn.Module]:
    found = {id(slot.module): slot.module for slot in model.slots().values()}
    return list(found.values())
