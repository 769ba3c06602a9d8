"""What each method of training makes, put where a real webui looks for it: loaded, drawn with, and its effect measured.

Trained on the miniature outside the webui, briefly. `LORAKIT_WEBUI_EFFORT` multiplies the steps of every run (1).
"""

from __future__ import annotations

import base64
import functools
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from lib_lora.files.library import NetworkLibrary
from lib_lora.files.tensors import read_tensors
from lib_lora.miniature import place
from lib_lora.miniature.draw import render
from lib_lora.miniature.judge import judge
from lib_lora.miniature.regions import plain_mask
from lib_lora.miniature.scenes import Scene, caption, draw_lots, judge_prompts
from lib_lora.miniature.score import subject_score
from lib_lora.miniature.subjects import SUBJECTS, Photo, photograph, write_photos
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.sample import SampleRequest, sample
from lib_lora.prompt import extract
from lib_lora.runtime import Runtime
from lib_lora.train.checkpoint import load_state
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.engine import Result, train
from lib_lora.train.session import prepare

pytestmark = [
    pytest.mark.webui,
    pytest.mark.skipif(bool(os.environ.get("LORAKIT_WEBUI_CHECKPOINT")), reason="the runs are made for the miniature"),
]
EFFORT = float(os.environ.get("LORAKIT_WEBUI_EFFORT", "1"))
STEPS = 40
WORD, SIDE = "sks", 128
PLACES = {"network": "models/Lora", "embedding": "embeddings", "hypernetwork": "models/hypernetworks"}
PLACES["checkpoint"] = "models/Stable-diffusion"
PROMPTS = ("a big {} toy on a gray background", "a big {} toy on a yellow background")
# With 10 steps both samplers stop at the very same whole timesteps, 999, 888, ... 0.
DRAW: dict[str, Any] = {"width": SIDE, "height": SIDE, "steps": 10, "seed": 7, "cfg_scale": 4, "sampler_name": "Euler"}
DRAW["override_settings"] = {"sgm_noise_multiplier": True}
COMMON: dict[str, Any] = {
    "data.trigger": WORD,
    "data.class_word": "toy",
    "data.resolution": SIDE,
    "network.rank": 16,
    "network.alpha": 16.0,
    "optimizer.lr": 2e-3,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 5,
    "training.batch_size": 2,
    "output.state_every": 0,
    "output.sidecar": False,
}


@dataclass(frozen=True)
class Trained:
    """A finished run and the files it left, which the webui knows nothing of yet."""

    job: JobConfig
    result: Result

    def file(self, kind: str) -> Path:
        found = Path(str(self.job.get(f"output.{kind}_folder"))).iterdir()
        (file,) = (path for path in found if path.suffix != ".yaml")  # a checkpoint's, which lies beside it
        return file


Make = Callable[..., Trained]


@pytest.fixture(scope="module")
def server(start: Any, setup_class: Any) -> Iterator[Any]:
    with start(setup_class()) as running:
        for folder in PLACES.values():
            (running.data / folder).mkdir(parents=True, exist_ok=True)
        yield running


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(name, method, steps, **settings)` trains on a toy that the miniature has not seen, or on `data__folder`.

    `__` stands for the dot of a setting.
    """

    def made(name: str, method: str, steps: int = STEPS, **settings: Any) -> Trained:
        folder = tmp_path_factory.mktemp(name)
        changes = {key.replace("__", "."): value for key, value in settings.items()}
        write_photos(photos(), folder / "toy", changes.get("data.trigger", WORD))
        values = {**COMMON, "data.folder": str(folder / "toy"), "output.folder": str(folder / "runs")}
        values |= {"output.name": name} | {f"output.{kind}_folder": str(folder / kind) for kind in PLACES}
        values |= {"method.name": method, "training.steps": max(round(steps * EFFORT), 1)}
        job = make_job({**values, **changes})
        return Trained(job, train(job, load_checkpoint(place.checkpoint_path())))

    return made


@functools.cache
def photos() -> list[Photo]:
    return photograph(SUBJECTS["bo"], 12, SIDE, seed=1)


def put(server: Any, path: Path, kind: str) -> Path:
    """The file where the webui looks for its kind, and the webui told to look."""
    target = server.data / PLACES[kind] / path.name
    shutil.copyfile(path, target)
    if kind == "checkpoint":
        # not the run's own .yaml: the server's names the small text encoder's folder
        shutil.copyfile(target.with_name(f"{place.NAME}.yaml"), target.with_suffix(".yaml"))
        server.post("/sdapi/v1/refresh-checkpoints", {})
    elif kind == "embedding":
        server.post("/sdapi/v1/refresh-embeddings", {})
    elif kind == "hypernetwork":
        server.reload()  # the webui's interface has no call for these
    else:
        server.post("/sdapi/v1/refresh-loras", {})
    return target


def drawn(server: Any, prompt: str, **more: Any) -> list[Image.Image]:
    """Pictures of the webui."""
    answer = server.post("/sdapi/v1/txt2img", {**DRAW, "prompt": prompt, **more})
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in answer["images"]]


def own(model: Any, prompt: str) -> list[Image.Image]:
    """The same pictures by our own sampler, without a webui."""
    request = SampleRequest((prompt,), seed=7, steps=DRAW["steps"], cfg=4.0, width=SIDE, height=SIDE, sampler="Euler")
    return sample(model, request)


def gap(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> tuple[int, float]:
    """Largest and mean difference, of 255."""
    assert len(first) == len(second)
    a, b = (numpy.stack([numpy.asarray(p, numpy.int32) for p in pictures]) for pictures in (first, second))
    return int(numpy.abs(a - b).max()), float(numpy.abs(a - b).mean())


def told(name: str, **figures: Any) -> None:
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))


def score(pictures: Sequence[Image.Image]) -> float:
    """How much the things on these pictures look like the toy that was learned."""
    return round(subject_score(pictures, [photo.image for photo in photos()]), 3)


def toys(server: Any, word: str, tag: str = "") -> list[Image.Image]:
    """A picture of each prompt."""
    return [picture for prompt in PROMPTS for picture in drawn(server, prompt.format(word) + tag)]


@pytest.fixture(scope="module")
def plain(server: Any) -> list[Image.Image]:
    """The base model's pictures."""
    return toys(server, WORD)


@contextmanager
def tagged(tag: str, folder: Path) -> Iterator[Any]:
    """The miniature in our own hands, a network applied by its tag with the words that it brings along."""
    model = load_checkpoint(place.checkpoint_path())
    with ExitStack() as stack:
        runtime = Runtime(NetworkLibrary([folder]))
        stack.callback(runtime.deactivate)
        report = runtime.activate(model, extract(tag)[1])
        assert report.complete, report.summary()
        for network in runtime.active:
            brought = {word: {"te1": vectors["clip_l"].float()} for word, vectors in network.embeddings.items()}
            stack.enter_context(model.extra_tokens(brought))
        yield model


def choose(server: Any, name: str) -> None:
    titles = [model["title"] for model in server.get("/sdapi/v1/sd-models")]
    server.options(sd_model_checkpoint=next(title for title in titles if title.startswith(f"{name}.")))


def test_the_base_is_drawn_alike_by_both(plain: list[Image.Image]) -> None:
    """What the comparisons below rest on."""
    largest, mean = gap(plain[:1], own(load_checkpoint(place.checkpoint_path()), PROMPTS[0].format(WORD)))
    told("base", ours=largest, mean=round(mean, 3), score=score(plain))
    assert largest <= 2


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_dreambooth_checkpoint_is_loaded_whole(server: Any, make: Make, plain: Any, dtype: str) -> None:
    rank = 256 if dtype == "fp32" else 0
    steps = STEPS if rank else STEPS // 2
    run = make(f"dream-{dtype}", "dreambooth", steps, optimizer__lr=3e-4, method__as_lora=rank, output__dtype=dtype)
    checkpoint = put(server, run.file("checkpoint"), "checkpoint")
    assert set(read_tensors(checkpoint)) == set(read_tensors(place.checkpoint_path()))
    try:
        choose(server, checkpoint.stem)
        pictures = toys(server, WORD)
    finally:
        choose(server, place.NAME)
    largest, _ = gap(pictures[:1], own(load_checkpoint(checkpoint), PROMPTS[0].format(WORD)))
    told(f"dreambooth {dtype}", ours=largest, base=gap(pictures, plain), score=f"{score(plain)} -> {score(pictures)}")
    if rank:
        network = put(server, run.file("network"), "network")
        merged = toys(server, WORD, f" <lora:{network.stem}:1>")
        told("as LoRA", checkpoint=gap(merged, pictures), base=gap(merged, plain), score=score(merged))
        assert gap(merged, pictures)[1] < gap(merged, plain)[1] / 2
    assert largest <= 2 and gap(pictures, plain)[1] > 2
    assert gap(drawn(server, PROMPTS[0].format(WORD)), plain[:1])[0] == 0, "the base model is not what it was"


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_an_embedding_is_loaded_and_read_as_we_read_it(server: Any, make: Make, plain: Any, ending: str) -> None:
    name = f"word{ending[0]}"
    run = make(name, "textual_inversion", method__embedding_format=ending, method__token_lr=3e-2)
    before = toys(server, name)  # the last prompt is another: the webui keeps the text states of the last one
    file = put(server, run.file("embedding"), "embedding")
    known = server.get("/sdapi/v1/embeddings")
    assert file.name == f"{name}.{ending}" and name in known["loaded"] and name not in known["skipped"]
    assert known["loaded"][name]["vectors"] == 4 and known["loaded"][name]["step"] in (run.result.steps, None)
    pictures = toys(server, name)
    model = load_checkpoint(place.checkpoint_path())
    with model.extra_tokens({name: {"te1": vectors_of(file)}}):
        largest, _ = gap(pictures[:1], own(model, PROMPTS[0].format(name)))
    told(
        f"textual inversion .{ending}", step=known["loaded"][name]["step"], ours=largest,
        base=gap(pictures, before), score=f"{score(plain)} -> {score(pictures)}",
    )  # fmt: skip
    assert largest <= 2 and gap(pictures, before)[1] > 2


def vectors_of(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return read_tensors(file)["emb_params"]
    return torch.load(file, weights_only=True)["string_to_param"]["*"]


RATES = {"pivotal_tuning": 2e-3, "custom_diffusion": 1e-3}


@pytest.mark.parametrize("method", RATES)
def test_a_network_brings_its_word_along(server: Any, make: Make, plain: Any, method: str) -> None:
    word = f"zk{method[0]}"
    run = make(method, method, data__trigger=word, optimizer__lr=RATES[method], method__token_lr=1e-2)
    network = put(server, run.file("network"), "network")
    prompt, tag = PROMPTS[0].format(word), f" <lora:{method}:1>"
    assert word not in server.get("/sdapi/v1/embeddings")["loaded"]
    pictures = toys(server, word, tag)
    with tagged(tag, network.parent) as model:
        largest, _ = gap(pictures[:1], own(model, prompt))
    server.options(lorakit_apply=False)
    try:
        theirs = drawn(server, prompt + tag)
    finally:
        server.options(lorakit_apply=True)
    untagged = drawn(server, prompt)  # now, as the built-in forgets the word it registered by its name alone
    drawn(server, PROMPTS[1])  # the webui keeps the text states of the last prompt
    embedding = put(server, run.file("embedding"), "embedding")
    assert embedding.stem == word and word in server.get("/sdapi/v1/embeddings")["loaded"]
    word_alone, both = drawn(server, prompt), drawn(server, prompt + tag)
    told(
        method, ours=largest, builtin=gap(pictures[:1], theirs)[0], base=gap(pictures[:1], untagged),
        score=f"{score(plain)} -> {score(pictures)}", word_alone=gap(word_alone, untagged),
        both=gap(both, pictures[:1]),
    )  # fmt: skip
    assert largest <= 2 and gap(pictures[:1], theirs)[0] <= 1 and gap(pictures[:1], untagged)[1] > 2
    assert gap(word_alone, untagged)[1] > 0.5, "the embedding by itself says nothing"
    assert gap(both, pictures[:1])[0] == 0, "the file's word and the bundled one differ"
    # How alike the toy is after so few steps is printed, not asked: two pictures of a short run cannot say.


def test_a_hypernetwork_does_what_was_trained(server: Any, make: Make, plain: Any) -> None:
    run = make("hyper", "hypernetwork", optimizer__lr=1e-3)
    put(server, run.file("hypernetwork"), "hypernetwork")
    assert "hyper" in [entry["name"] for entry in server.get("/sdapi/v1/hypernetworks")]
    pictures = toys(server, WORD, " <hypernet:hyper:1>")
    model = load_checkpoint(place.checkpoint_path())
    session = prepare(run.job, model, run.result.folder)
    load_state(run.result.folder / "checkpoints" / "state.safetensors", session)
    with session.best(), session.attached():
        largest, _ = gap(pictures[:1], own(model, PROMPTS[0].format(WORD)))
    told("hypernetwork", ours=largest, base=gap(pictures, plain), score=f"{score(plain)} -> {score(pictures)}")
    assert largest <= 2 and gap(pictures, plain)[1] > 2
    assert gap(drawn(server, PROMPTS[0].format(WORD)), plain[:1])[0] == 0, "it stays in use without its tag"


def test_lcm_draws_in_four_steps_without_guidance(server: Any, make: Make, tmp_path: Path) -> None:
    rng = random.Random(3)
    for number in range(32):
        scene = draw_lots(rng, toys=0.0)
        render(scene, SIDE, number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption(scene, rng), encoding="utf-8")
    guidance = {"method__lcm_cfg_low": 3.0, "method__lcm_cfg_high": 5.0, "method__lcm_steps": 20}
    run = make("quick", "lcm", 2 * STEPS, data__folder=str(tmp_path), data__trigger="", data__class_word="", **guidance)
    put(server, run.file("network"), "network")
    asked = judge_prompts(4)
    few = {"steps": 4, "cfg_scale": 1, "sampler_name": "LCM" if has_lcm(server) else "Euler a", "batch_size": 4}
    without = judged(server, asked, "", few)
    with_it = judged(server, asked, " <lora:quick:1>", few)
    told("lcm", sampler=few["sampler_name"], without=without, with_it=with_it)
    assert with_it[1] > without[1]


def has_lcm(server: Any) -> bool:
    return "LCM" in [entry["name"] for entry in server.get("/sdapi/v1/samplers")]


def judged(server: Any, asked: Sequence[tuple[Scene, str]], tag: str, settings: dict[str, Any]) -> tuple[float, float]:
    """Share of pictures whose shape and colour are as asked, and the mean overlap with the best known shape."""
    seen = [(scene, judge(picture)) for scene, text in asked for picture in drawn(server, text + tag, **settings)]
    right = sum(verdict.agrees(scene) for scene, verdict in seen) / len(seen)
    return round(right, 3), round(sum(verdict.overlap for _, verdict in seen) / len(seen), 3)


def area(server: Any, tag: str) -> float:
    """Mean share of the picture that the thing takes, over four seeds."""
    pictures = drawn(server, f"a red circle on a blue background{tag}", batch_size=4)
    return round(float(numpy.mean([plain_mask(numpy.asarray(picture))[0].mean() for picture in pictures])), 4)


@pytest.mark.parametrize("method", ["slider", "image_slider"])
def test_a_slider_moves_one_property_both_ways(server: Any, make: Make, tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"data__trigger": "", "data__class_word": ""}
    if method == "slider":
        ends = {"slider_positive": "a big circle", "slider_negative": "a small circle", "slider_target": "a circle"}
        settings |= {f"method__{key}": value for key, value in ends.items()}
        settings |= {"method__slider_steps": 10}
    else:
        before, after = tmp_path / "before", tmp_path / "after"
        write_pairs(before, after)
        settings |= {"data__folder": str(before), "method__pairs_after": str(after)}
    run = make(method.replace("_", "-"), method, STEPS // 2, network__rank=4, network__alpha=4.0, **settings)
    name = put(server, run.file("network"), "network").stem
    sizes = [area(server, tag) for tag in (f" <lora:{name}:-1>", "", f" <lora:{name}:1>")]
    told(method, area_at_minus_1_0_1=sizes)
    assert sizes[0] < sizes[1] < sizes[2]


def write_pairs(before: Path, after: Path) -> None:
    """Small things and the same ones big."""
    rng = random.Random(5)
    for folder in (before, after):
        folder.mkdir()
    for number in range(12):
        scene = draw_lots(rng, toys=0.0)
        for folder, size in ((before, "small"), (after, "big")):
            sized = Scene(scene.thing, scene.colour, scene.background, size)
            render(sized, SIDE, number).save(folder / f"{number}.png")
            text = caption(Scene(scene.thing, scene.colour, scene.background), random.Random(number))
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")


def test_the_log_tells_of_no_exception(server: Any, plain: Any) -> None:
    assert server.faults() == []
