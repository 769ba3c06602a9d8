"""The key tables, both ways, against the modules of diffusers, transformers, ldm, sgm and open_clip."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora.keys import kohya, modules, open_clip, text_encoder, unet, vae
from lib_lora.keys.checkpoint import default_targets, diffusers_to_ldm, ldm_to_diffusers
from lib_lora.keys.layer_key import LayerKey
from lib_lora.miniature.nets import new_vae

PARTS = (*((v, "unet") for v in unet.LAYOUTS), ("sd1", "te1"), ("sd2", "te1"), ("sdxl", "te1"), ("sdxl", "te2"))
COUNTS = {("sd1", "unet"): 192, ("sd2", "unet"): 192, ("sdxl", "unet"): 722}
COUNTS |= {("sd1", "te1"): 72, ("sd2", "te1"): 138, ("sdxl", "te1"): 72, ("sdxl", "te2"): 192}
LINEAR = ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv")


def weighted_modules(model: Any) -> list[str]:
    """Modules that own a parameter, in module order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def paths(version: str, part: str) -> tuple[str, ...]:
    if part == "unet":
        return unet.unet_paths(version)
    return text_encoder.text_encoder_paths(text_encoder.LAYERS[version][part], projection=part == "te2")


@pytest.mark.parametrize(("version", "part"), PARTS)
def test_paths_are_exactly_the_real_modules_in_their_order(version: str, part: str, base_model: Callable) -> None:
    assert paths(version, part) == tuple(base_model(version, part).shapes)


@pytest.mark.parametrize(("version", "part"), PARTS)
def test_default_targets_are_what_kohya_finds_by_class(version: str, part: str, base_model: Callable) -> None:
    """kohya walks named classes; the table must find the same without a model."""
    model = base_model(version, part)
    rooms = {"Transformer2DModel"} if part == "unet" else {"CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"}
    found = {path for path, leaf in model.leaves.items() if leaf in LINEAR and rooms & set(model.ancestors[path])}
    assert set(default_targets(part, version)) == found
    assert len(found) == COUNTS[version, part]
    if part == "unet":
        rooms = {"ResnetBlock2D", "Downsample2D", "Upsample2D"}
        found = {path for path, leaf in model.leaves.items() if leaf in LINEAR and rooms & set(model.ancestors[path])}
        assert set(unet.conv_targets(version)) == found


@pytest.mark.parametrize(("version", "part"), PARTS)
def test_kohyas_names_of_every_module_lead_back(version: str, part: str, base_model: Callable) -> None:
    keys = [LayerKey(part, path) for path in base_model(version, part).shapes]
    for written_for in (version, "sd1"):  # SDXL exists in sgm's and in diffusers' names
        names = {kohya.layer_name(key, written_for): key for key in keys}
        assert len(names) == len(keys)
        for name, key in names.items():
            found = modules.find(name)
            assert found is not None
            assert found.key == key


def test_no_name_means_two_layers() -> None:
    """Flattened, the names of all versions and of both sides agree wherever they meet."""
    meant: dict[str, str] = {}
    for version, native in unet.NATIVE.items():
        for path in unet.unet_paths(version):
            for name in (path, native[path]):
                assert meant.setdefault(name.replace(".", "_"), path) == path


UNET_OPTIONS: dict[str, dict[str, Any]] = {
    "sd1": {"channel_mult": [1, 2, 4, 4], "attention_resolutions": [4, 2, 1], "num_heads": 8, "context_dim": 768},
    "sd2": {"channel_mult": [1, 2, 4, 4], "attention_resolutions": [4, 2, 1], "num_head_channels": 64}
    | {"context_dim": 1024, "use_linear_in_transformer": True},
    "sdxl": {"channel_mult": [1, 2, 4], "attention_resolutions": [4, 2], "num_head_channels": 64, "context_dim": 2048}
    | {"use_linear_in_transformer": True, "transformer_depth": [1, 2, 10], "adm_in_channels": 2816}
    | {"num_classes": "sequential"},
}


def compvis_unet(openaimodel: Any, version: str) -> Any:
    """ldm's or sgm's UNetModel with a version's options, on the meta device."""
    options = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2, "transformer_depth": 1}
    options |= {"use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False}
    options |= UNET_OPTIONS[version]
    taken = inspect.signature(openaimodel.UNetModel).parameters  # they differ between sgm's versions
    with torch.device("meta"):
        return openaimodel.UNetModel(**{name: value for name, value in options.items() if name in taken})


def assert_unet_agrees(model: Any, version: str, expected: dict[str, tuple[int, ...]]) -> None:
    """Every module has exactly one canonical path and back, and the shapes are those of diffusers' module."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n.endswith(".weight")}
    left = dict(expected)
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        path = ldm_to_diffusers("unet", module)
        assert path is not None, module
        assert diffusers_to_ldm("unet", path, version) == module
        assert left.pop(path) == shape
    assert not left


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_unet_is_exactly_ldms(version: str, base_model: Callable) -> None:
    openaimodel = pytest.importorskip("ldm.modules.diffusionmodules.openaimodel")
    assert_unet_agrees(compvis_unet(openaimodel, version), version, base_model(version, "unet").shapes)


def _define_missing_ops() -> None:
    """There is no CPU build of torchvision in the test environment; its import needs these two names only."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.mark.webui
def test_unet_is_exactly_sgms(base_model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """sgm cannot be installed; a webui has its source. Its packages' own imports (kornia, ...) are left out."""
    source = Path(os.environ.get("LORAKIT_WEBUI", "")) / "repositories" / "generative-models"
    if not (source / "sgm").is_dir():
        pytest.skip("set LORAKIT_WEBUI to a webui's folder")
    _define_missing_ops()
    before = set(sys.modules)
    try:
        for name in ("sgm", "sgm.modules", "sgm.modules.diffusionmodules"):
            package = types.ModuleType(name)
            package.__path__ = [str(source.joinpath(*name.split(".")))]
            monkeypatch.setitem(sys.modules, name, package)
        openaimodel = importlib.import_module("sgm.modules.diffusionmodules.openaimodel")
        assert_unet_agrees(compvis_unet(openaimodel, "sdxl"), "sdxl", base_model("sdxl", "unet").shapes)
    finally:
        for name in [name for name in sys.modules if name.startswith("sgm.") and name not in before]:
            monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(("version", "part"), [("sd2", "te1"), ("sdxl", "te2")])
def test_open_clip_has_a_place_for_every_layer(version: str, part: str, base_model: Callable) -> None:
    """Every parameter of the tower is one layer's, or three layers' in equal rows, with the shape that layer has."""
    _define_missing_ops()
    open_clip_model = pytest.importorskip("open_clip.model")
    blocks = text_encoder.LAYERS[version][part] + (version == "sd2")  # the last one is never run
    width = 1024 if version == "sd2" else 1280
    with torch.device("meta"):
        tower = open_clip_model.CLIP(
            embed_dim=width,
            vision_cfg={"layers": 1, "width": 64, "head_width": 64, "patch_size": 14, "image_size": 14},
            text_cfg={"layers": blocks, "width": width, "heads": width // 64},
        )
    del tower.visual
    parameters = {name: tuple(p.shape) for name, p in tower.named_parameters() if name != "logit_scale"}
    expected = dict(base_model(version, part).shapes)
    used: dict[str, list[tuple[int, int] | None]] = {}
    for path, place in open_clip.openclip_places(blocks, width).items():
        for own in filter(None, (place.weight, place.bias)):
            used.setdefault(f"{place.module}.{own}".lstrip("."), []).append(place.rows)
        rows, *rest = parameters[f"{place.module}.{place.weight}".lstrip(".")]
        rows = rows if place.rows is None else place.rows[1] - place.rows[0]
        shape = (*rest, rows) if place.transposed else (rows, *rest)
        if version == "sd2" and (".layers.23." in path or path == "text_projection"):
            continue
        assert expected.pop(path) == shape, path
    assert not expected
    assert set(used) == set(parameters)
    fused = {name: rows for name, rows in used.items() if None not in rows}
    assert len(fused) == 2 * blocks
    assert all(rows == [(i * width, (i + 1) * width) for i in range(3)] for rows in fused.values())


def test_vae_table_is_exactly_both_sides_modules() -> None:
    model = pytest.importorskip("ldm.modules.diffusionmodules.model")
    options = {"ch": 64, "out_ch": 3, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_resolutions": []}
    options |= {"in_channels": 3, "resolution": 64, "z_channels": 4}
    names = {f"encoder.{n}" for n in weighted_modules(model.Encoder(**options))}
    names |= {f"decoder.{n}" for n in weighted_modules(model.Decoder(**options))}
    assert set(vae.LDM_TO_DIFFUSERS) == names | {"quant_conv", "post_quant_conv"}
    assert set(vae.vae_paths()) == set(weighted_modules(new_vae()))


@pytest.mark.parametrize("part", ["unet", "vae", "te1"])
def test_tables_invert(part: str) -> None:
    known = {"unet": unet.unet_paths(), "vae": vae.vae_paths(), "te1": text_encoder.text_encoder_paths()}[part]
    for path in known:
        ldm = diffusers_to_ldm(part, path)
        assert ldm is not None
        assert ldm_to_diffusers(part, ldm) == path
    assert ldm_to_diffusers(part, "no.such.layer") is None
    assert diffusers_to_ldm(part, "no.such.layer") is None
