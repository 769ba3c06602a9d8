"""The webui's interrogators and tagger extensions as captioners: against fakes with their real signatures."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadDataset
from lib_lora.host.captioners import captioners, tags_text

PICTURE = Image.new("RGB", (32, 32))


class FakeInterrogator:
    """modules.interrogate.InterrogateModels: what it is asked, in order."""

    def __init__(self, content_dir: str, log: list[str]) -> None:
        self.content_dir, self.log, self.error = content_dir, log, False

    def load(self) -> None:
        self.log.append("load")
        if self.error:
            raise RuntimeError("no such file")

    def generate_caption(self, pil_image: Image.Image) -> str:
        self.log.append(f"caption {pil_image.size}")
        return "a dog"

    def interrogate(self, pil_image: Image.Image) -> str:
        self.log.append("interrogate")
        return "a dog<error>" if self.error else "a dog, by somebody"

    def unload(self) -> None:
        self.log.append("unload")


class FakeDeepDanbooru:
    """modules.deepbooru.DeepDanbooru."""

    def __init__(self, log: list[str]) -> None:
        self.model, self.log = None, log

    def start(self) -> None:
        self.log.append("start")
        self.model = object()

    def stop(self) -> None:
        self.log.append("stop")

    def tag_multi(self, pil_image: Image.Image, force_disable_ranks: bool = False) -> str:
        self.log.append(f"tags {force_disable_ranks}")
        return "dog, grass"


@pytest.fixture
def webui(tmp_path: Path) -> Any:
    log: list[str] = []
    state = SimpleNamespace(interrupted=False, begin=lambda job: log.append("begin"), end=lambda: log.append("end"))
    lock = threading.Lock()
    return SimpleNamespace(
        log=log,
        call_queue=SimpleNamespace(queue_lock=lock),
        paths=SimpleNamespace(models_path=str(tmp_path / "models")),
        devices=SimpleNamespace(torch_gc=lambda: log.append("gc")),
        lowvram=SimpleNamespace(send_everything_to_cpu=lambda: log.append("to cpu")),
        deepbooru=SimpleNamespace(model=FakeDeepDanbooru(log)),
        shared=SimpleNamespace(
            state=state,
            cmd_opts=SimpleNamespace(clip_models_path=str(tmp_path / "clip")),
            interrogator=FakeInterrogator(str(tmp_path / "interrogate"), log),
        ),
    )


@pytest.fixture
def tagger(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a tagger extension: its table is empty until it is asked to fill it."""
    module: Any = ModuleType("tagger.utils")
    module.interrogators = {}
    log: list[str] = []

    class Model:
        model: Any = None

        def interrogate(self, image: Image.Image) -> tuple[dict[str, float], dict[str, float]]:
            log.append("interrogate")
            return {"general": 0.9}, {"grass": 0.4, "red_collar": 0.9, "sky": 0.2, ":_d": 0.5, "o_o": 0.36}

        def unload(self) -> bool:
            log.append("unload")
            return True

    def refresh() -> list[str]:
        module.interrogators = {"wd-vit-v3": Model()}
        return ["wd-vit-v3"]

    module.refresh_interrogators, module.log = refresh, log
    monkeypatch.setitem(sys.modules, "tagger.utils", module)
    return module


def named(webui: Any, begin: str) -> Any:
    return next(one for one in captioners(webui) if one.name.startswith(begin))


def test_all_that_is_there_is_offered(webui: Any, tagger: Any) -> None:
    assert [one.name for one in captioners(webui)] == [
        "BLIP (a sentence)",
        "CLIP (a sentence and styles)",
        "DeepDanbooru (tags)",
        "wd-vit-v3 (tags)",
    ]
    assert all(one.available() == "" for one in captioners(webui))
    assert webui.log == []  # nothing is loaded by listing


def test_without_extensions_the_webuis_own_are_offered(webui: Any) -> None:
    assert len(captioners(webui)) == 3


def test_an_extension_that_fails_takes_nothing_along(webui: Any, tagger: Any) -> None:
    def refuse() -> list[str]:
        raise RuntimeError("no onnxruntime")

    tagger.refresh_interrogators = refuse
    assert len(captioners(webui)) == 3


@pytest.mark.parametrize(
    ("begin", "text", "log"),
    [
        ("BLIP", "a dog", ["begin", "to cpu", "gc", "load", "caption (32, 32)", "unload", "gc", "end"]),
        ("CLIP", "a dog, by somebody", ["begin", "to cpu", "gc", "interrogate", "unload", "gc", "end"]),
        ("DeepDanbooru", "dog, grass", ["begin", "to cpu", "gc", "start", "tags True", "stop", "gc", "end"]),
    ],
)
def test_they_run_alone_and_put_everything_back(webui: Any, begin: str, text: str, log: list[str]) -> None:
    lock = webui.call_queue.queue_lock
    with named(webui, begin).opened() as describe:
        assert lock.locked()
        assert describe(PICTURE) == text
    assert webui.log == log and not lock.locked()


def test_a_tagger_is_asked_and_unloaded(webui: Any, tagger: Any) -> None:
    with named(webui, "wd-vit").opened() as describe:
        assert describe(PICTURE) == "red collar, :_d, grass, o_o"
    assert tagger.log == ["interrogate", "unload"]


def test_tags_need_the_threshold_and_lose_their_underscores() -> None:
    assert tags_text({"a_bc": 0.35, "c": 0.349, "d": 1.0}) == "d, a bc"
    assert tags_text({}) == ""


@pytest.mark.parametrize("begin", ["BLIP", "CLIP"])
def test_failures_are_told_and_the_lock_is_free_again(webui: Any, begin: str) -> None:
    webui.shared.interrogator.error = True
    with pytest.raises(BadDataset, match=begin), named(webui, begin).opened() as describe:
        describe(PICTURE)
    assert not webui.call_queue.queue_lock.locked() and webui.log[-3:] == ["unload", "gc", "end"]


def test_the_webuis_interrupt_button_ends_it(webui: Any) -> None:
    with pytest.raises(BadDataset, match="Interrupt"), named(webui, "BLIP").opened() as describe:
        webui.shared.state.interrupted = True
        describe(PICTURE)
    assert webui.log[-1] == "end"


def test_a_webui_without_lowvram_is_served_too(webui: Any) -> None:
    del webui.lowvram  # Forge
    with named(webui, "BLIP").opened() as describe:
        assert describe(PICTURE) == "a dog"


def test_what_has_to_be_downloaded_is_told_until_it_is_there(webui: Any, tagger: Any, tmp_path: Path) -> None:
    for begin, size in (("BLIP", "1.8 GB"), ("CLIP", "1.8 GB"), ("DeepDanbooru", "0.6 GB"), ("wd-vit", "GB")):
        assert size in named(webui, begin).downloads()
    for name in ("models/BLIP/x.pth", "clip/ViT-L-14.pt", "models/torch_deepdanbooru/x.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert named(webui, "BLIP").downloads() == named(webui, "DeepDanbooru").downloads() == ""
    assert "styles" in named(webui, "CLIP").downloads()
    (tmp_path / "interrogate").mkdir()
    assert named(webui, "CLIP").downloads() == ""
    tagger.interrogators["wd-vit-v3"].model = object()
    assert named(webui, "wd-vit").downloads() == ""
