"""Other extensions beside ours: LORAKIT_NEIGHBOURS names their folders, divided as in PATH.

Known are sd-webui-loractl, sd-webui-lora-block-weight (these two are tested together), sd-dynamic-prompts, Regional
Prompter, Tiled Diffusion and ControlNet (each that is given, all in one webui). Their own packages must be installed.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"
VECTOR = ",".join(["1"] * 9 + ["0"] * 8)
TAGS = ("<lora:loud:1>", "", "<lora:loud:1:lbw=MIDD>", f"<lora:loud:1:lbw={VECTOR}>", "<lora:loud:1:stop=4>")
SCHEDULES = ("<lora:loud:0@0,1@1>", "<lora:loud:1@0,0@0.5>", "<lora:loud:0.2@2,1@6>")
KNOWN = {  # a file by which each is recognised: its folder may have any name
    "loractl": "loractl/lib/lora_ctl_network.py",
    "block weight": "scripts/lora_block_weight.py",
    "dynamic prompts": "sd_dynamic_prompts/dynamic_prompting.py",
    "regional prompter": "scripts/rp.py",
    "tiled diffusion": "scripts/tilediffusion.py",
    "controlnet": "scripts/controlnet.py",
}
OF_THE_TAG = ("loractl", "block weight")


@pytest.fixture(scope="module")
def given() -> dict[str, Path]:
    """The neighbours that the environment names."""
    found = [Path(folder) for folder in os.environ.get("LORAKIT_NEIGHBOURS", "").split(os.pathsep) if folder]
    if not found:
        pytest.skip("LORAKIT_NEIGHBOURS is not set: give folders of sd-webui-loractl, sd-dynamic-prompts, ...")
    return {name: folder for folder in found for name, file in KNOWN.items() if (folder / file).is_file()}


@pytest.fixture(scope="module")
def folders(given: dict[str, Path]) -> dict[str, Path]:
    if not set(OF_THE_TAG) <= set(given):
        pytest.skip("LORAKIT_NEIGHBOURS does not name both sd-webui-loractl and sd-webui-lora-block-weight")
    return {f"neighbour-{given[name].name}": given[name] for name in OF_THE_TAG}


@pytest.fixture(scope="module")
def theirs(start: Any, setup_class: Any, folders: Any) -> dict[str, Any]:
    """What they draw without us."""
    with start(setup_class(ours=False, extensions=folders)) as server:
        return {tag: server.picture(f"{PROMPT} {tag}")[0] for tag in (*TAGS, *SCHEDULES)}


@pytest.fixture(scope="module")
def beside(start: Any, theirs: Any, setup_class: Any, folders: Any) -> Iterator[Any]:
    with start(setup_class(extensions=folders)) as server:
        yield server


@pytest.mark.parametrize("tag", [*TAGS, *SCHEDULES])
def test_our_syntax_draws_what_theirs_does(beside: Any, theirs: Any, tag: str) -> None:
    picture, text = beside.picture(f"{PROMPT} {tag}")
    difference = int(numpy.abs(picture - theirs[tag]).max())
    print(f"{tag}: largest difference {difference} / 255")
    assert difference <= 2 and ("LoRA layers" in text) == bool(tag)
    seen = beside.probe()
    assert seen["owner"] == "LoraTag" and seen["bare"]


def test_switched_off_they_work_as_without_us(beside: Any, theirs: Any) -> None:
    beside.picture(f"{PROMPT} {TAGS[0]}")
    beside.options(lorakit_apply=False)
    try:
        pictures = {tag: beside.picture(f"{PROMPT} {tag}")[0] for tag in (*TAGS, *SCHEDULES)}
    finally:
        beside.options(lorakit_apply=True)
    for tag, picture in pictures.items():
        assert numpy.array_equal(picture, theirs[tag]), tag


def test_loractl_disabled_in_its_own_panel_does_not_stumble(beside: Any, theirs: Any) -> None:
    off = {"alwayson_scripts": {"Dynamic Lora Weights": {"args": [False, False]}}}
    for _ in range(2):
        picture, _ = beside.picture(f"{PROMPT} {TAGS[0]}", **off)
        assert numpy.array_equal(picture, theirs[TAGS[0]])


def test_the_log_tells_of_no_exception_and_says_who_reads_the_syntax(beside: Any, theirs: Any) -> None:
    assert beside.faults() == []
    text = beside.log.read_text(encoding="utf-8", errors="replace")
    assert text.count("sd-webui-loractl is loaded as well") == 1
    assert text.count("sd-webui-lora-block-weight is loaded as well") == 1


LOUD, OTHER = "<lora:loud:1>", "<lora:other:1>"
SMALL = {"width": 64, "height": 64, "steps": 3}
LATENT = "Regional Prompter in latent mode"
# What sd-dynamic-prompts registers too late on a fresh 1.9 or later (its issue 754), as an older installation has it.
DYNAMIC_SETTINGS = {
    **{f"dp_{name}": False for name in ("ignore_whitespace", "write_prompts_to_file", "limit_jinja_prompts")},
    **{f"dp_{name}": False for name in ("auto_purge_cache", "write_raw_template")},
    **{f"dp_wildcard_manager_{name}": False for name in ("no_dedupe", "no_sort", "shuffle")},
    "dp_magicprompt_batch_size": 1,
    "dp_magicprompt_default_model": "",
    "dp_parser_variant_start": "{",
    "dp_parser_variant_end": "}",
    "dp_parser_wildcard_wrap": "__",
}


def _dynamic() -> dict[str, Any]:
    """All combinations, same seed for each."""
    return {"Dynamic Prompts v2.17.1": {"args": [True, True, 1, *[False] * 3, 1.1, 1.5, 100, 0.7, True]}}


def _regional(mode: str, negative: str = "0") -> dict[str, Any]:
    """Two columns; `negative` are the shares of the networks in the negative prompt, of text encoder and UNet."""
    places = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "0.2", False, False, False]
    return {"Regional Prompter": {"args": [*places, mode, [], negative, negative, "0.4", "", "0", "0", False]}}


def _tiled(method: str, *regions: str) -> dict[str, Any]:
    """Tiles of 16 latent pixels, four at once; each of the regions is a column, with this prompt of its own."""
    tiles = [True, method, False, True, 1024, 1024, 16, 16, 4, 4, "None", 2.0, False, 10, 1, 1, 64, False]
    boxes: list[Any] = []
    for index, prompt in enumerate(regions):
        boxes += [True, index / len(regions), 0.0, 1 / len(regions), 1.0, prompt, "", "Background", 0.2, 5]
    return {"Tiled Diffusion": {"args": [*tiles, bool(regions), True, False, *boxes]}}


def _control(module: str) -> dict[str, Any]:
    picture = numpy.zeros((64, 64, 3), dtype=numpy.uint8)
    picture[8:40, 16:48] = 200, 40, 60
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    unit = {"enabled": True, "image": base64.b64encode(file.getvalue()).decode(), "module": module, "model": "None"}
    return {"ControlNet": {"args": [unit]}}


_COLUMNS = f"red circle {LOUD} ADDCOL green square {OTHER}"
_WIDE = {"width": 160, "height": 128, "steps": 2}
_LARGE = {"width": 384, "height": 256, "steps": 1}
_METHODS = {"MultiDiffusion": "multidiffusion", "Mixture of Diffusers": "mixture"}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # neighbour, prompt, settings of the picture
    "attention": ("regional prompter", _COLUMNS, {"alwayson_scripts": _regional("Attention")}),
    "latent": ("regional prompter", _COLUMNS, {"alwayson_scripts": _regional("Latent")}),
    "latent, in the negative": ("regional prompter", _COLUMNS, {"alwayson_scripts": _regional("Latent", "1")}),
    "tiles": ("tiled diffusion", f"{PROMPT} {LOUD}", {"alwayson_scripts": _tiled("MultiDiffusion"), **_WIDE}),
    **{
        f"regions, {short}": (
            "tiled diffusion",
            f"{PROMPT} {LOUD}",
            {"alwayson_scripts": _tiled(method, f"square {OTHER}", "blue"), **_WIDE},
        )
        for method, short in _METHODS.items()
    },
    "tiled vae": (
        "tiled diffusion",
        f"{PROMPT} {LOUD}",
        {"alwayson_scripts": {"Tiled VAE": {"args": [True, 256, 16, False, True, True, False]}}, **_LARGE},
    ),
    "reference": ("controlnet", f"{PROMPT} {LOUD}", {"alwayson_scripts": _control("reference_only")}),
}


@pytest.fixture(scope="module")
def others(given: dict[str, Path]) -> dict[str, Path]:
    found = {name: folder for name, folder in given.items() if name not in OF_THE_TAG}
    if not found:
        pytest.skip(f"LORAKIT_NEIGHBOURS names none of {', '.join(set(KNOWN) - set(OF_THE_TAG))}")
    return found


@pytest.fixture(scope="module")
def crowd(others: dict[str, Path], setup_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`crowd(ours)`: how to start a webui with these neighbours, with or without us, and a wildcard file `net`."""
    folder = tmp_path_factory.mktemp("neighbours")
    (folder / "net.txt").write_text(f"{LOUD}\n{OTHER}\n", encoding="utf-8")
    settings = folder / "settings.json"
    settings.write_text(json.dumps({**DYNAMIC_SETTINGS, "wildcard_dir": str(folder)}), encoding="utf-8")

    def setup(ours: bool | None) -> Any:
        extensions = {f"neighbour-{folder.name}": folder for folder in others.values()}
        return setup_class(ours=ours, extensions=extensions, arguments=("--ui-settings-file", str(settings)))

    return setup


def _with_other(server: Any) -> Any:
    """The server, with a second network `other`."""
    tensors = load_file(str(server.networks / "loud.safetensors"))
    flipped = {name: tensor if name.endswith("alpha") else tensor.flip(0) for name, tensor in tensors.items()}
    save_file(flipped, str(server.networks / "other.safetensors"))
    server.post("/sdapi/v1/refresh-loras", {})
    return server


def _all_cases(server: Any, names: Any) -> dict[str, Any]:
    chosen = {case: value for case, value in CASES.items() if value[0] in names}
    return {case: server.picture(prompt, **{**SMALL, **more})[0] for case, (_, prompt, more) in chosen.items()}


@pytest.fixture(scope="module")
def without_us(start: Any, crowd: Any, others: dict[str, Path]) -> dict[str, Any]:
    """What the built-in draws for each case."""
    with start(crowd(None)) as server:
        return _all_cases(_with_other(server), others)


@pytest.fixture(scope="module")
def amid(start: Any, without_us: Any, crowd: Any) -> Iterator[Any]:
    """The webui with us and all of them."""
    with start(crowd(True)) as server:
        yield _with_other(server)


@pytest.mark.parametrize("case", CASES)
def test_beside_them_the_picture_is_the_built_ins(amid: Any, without_us: Any, others: Any, case: str) -> None:
    neighbour, prompt, more = CASES[case]
    if neighbour not in others:
        pytest.skip(f"LORAKIT_NEIGHBOURS does not name {neighbour}")
    picture, _ = amid.picture(prompt, **{**SMALL, **more})
    comments, difference = amid.probe()["comments"], int(numpy.abs(picture - without_us[case]).max())
    print(f"{case}: largest difference {difference} / 255; {comments}")
    assert difference <= 2
    if case.startswith("latent"):  # its regions are the built-in's networks, whose strengths it sets between two calls
        assert difference == 0 and LATENT in " ".join(comments)
    else:
        assert any(line.startswith("loud: ") and line.endswith("layers applied") for line in comments)
    bare = {key: value for key, value in more.items() if key != "alwayson_scripts"}
    assert (amid.picture(prompt, **{**SMALL, **bare})[0] != picture).any(), "the neighbour did nothing"


@pytest.mark.parametrize("template", [f"{{{LOUD}|{OTHER}}}", "__net__", "<lora:{loud|other}:1>"])
def test_each_picture_of_a_template_has_its_own_network(amid: Any, others: Any, template: str) -> None:
    if "dynamic prompts" not in others:
        pytest.skip("LORAKIT_NEIGHBOURS does not name sd-dynamic-prompts")
    body = {"prompt": f"{PROMPT} {template}", "seed": 7, "sampler_name": "Euler", "alwayson_scripts": _dynamic()}
    made = amid.post("/sdapi/v1/txt2img", {**SMALL, **body})["images"]
    pictures = [numpy.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in made]
    direct = [amid.picture(f"{PROMPT} {tag}", **SMALL)[0] for tag in (LOUD, OTHER)]
    assert len(pictures) == 2 and (direct[0] != direct[1]).any()
    assert all(numpy.array_equal(one, two) for one, two in zip(pictures, direct, strict=True))


def test_after_them_the_model_is_as_before_and_the_log_has_no_exception(amid: Any, others: Any) -> None:
    first, _ = amid.picture(f"{PROMPT} {LOUD}", **SMALL)
    amid.picture(PROMPT, **SMALL)
    before = amid.probe()["weights"]
    if "regional prompter" in others:
        amid.picture(CASES["latent"][1], **{**SMALL, **CASES["latent"][2]})
    again, _ = amid.picture(f"{PROMPT} {LOUD}", **SMALL)
    amid.picture(PROMPT, **SMALL)
    seen = amid.probe()
    assert numpy.array_equal(first, again) and seen["weights"] == before
    assert seen["owner"] == "LoraTag" and seen["bare"] and amid.faults() == []
