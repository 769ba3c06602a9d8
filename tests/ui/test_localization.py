"""localizations/zh_CN.json: every word that the page can show has its translation, and no word has one in vain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lib_lora.host import axes, options
from lib_lora.train.config import fields
from lib_lora.train.presets import PRESETS
from lib_lora.train.sections import METHODS
from lib_lora.train.sections_data import Concept
from lib_lora.train.settings import settings_of
from lib_lora.ui import generate_tab, tab
from lib_lora.ui.fields import SECTIONS, label_of
from lib_lora.ui.spoken import pieces, spoken
from tests.browser.stage import Generator
from tests.ui import every_state
from tests.ui.fake_trainer import SD1, FakeTrainer
from tests.ui.visible import MARK, is_words, words_of, words_of_page

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "localizations" / "zh_CN.json"
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# What Chinese users call as we do, and nothing else; "of" between two numbers is a stroke.
UNCHANGED = {"Alpha", "Beta1", "Beta2", "DoRA", "rsLoRA", "DreamBooth", "dreambooth", "LoRA kit", "of"}
NUMBER = re.compile(r"(?<![A-Za-z])\d+(?:\.\d+)?(?![A-Za-z])")
# Of gradio and of the page around ours: shown inside of our fields, or beside them.
OF_GRADIO = {"Drop File Here", "Drop Image Here", "- or -", "or", "Click to Upload"}


@pytest.fixture(scope="module")
def chinese() -> Mapping[str, str]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def source() -> str:
    """All our code, with texts that go on in the next line joined."""
    return "\n".join(
        re.sub(r'["\']\s*\n\s*f?["\']', "", path.read_text(encoding="utf-8"))
        for folder, kind in (("lib_lora", "*.py"), ("javascript", "*.js"))
        for path in sorted((ROOT / folder).rglob(kind))
    )


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of every state."""
    found = [text for html in every_state.every(tmp_path_factory.mktemp("states")) for text in words_of(html)]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of both tabs as they are built."""
    import gradio as gr

    trainer = FakeTrainer(tmp_path_factory.mktemp("page"), SD1)
    with gr.Blocks(analytics_enabled=False) as built, gr.Tabs():
        with gr.Tab("Generate"):
            generate_tab.add(Drawer())
        with gr.Tab("Train"):
            tab.add(trainer, lambda: [Describer()])
    return list(dict.fromkeys(words_of_page(built.get_config_file())))


class Drawer(Generator):
    """Has a network of a user's."""

    def networks(self) -> list[str]:
        return [MARK]


class Describer:
    """A captioner, so that its part of the page is there."""

    name = MARK

    def available(self) -> str:
        return ""

    downloads = available
    opened: Any = None


def declared() -> Iterator[str]:
    """What the settings say of themselves, wherever it is shown."""
    yield from SECTIONS.values()
    for item in fields():
        yield from (label_of(item), item.help)
    for item in settings_of("concept", Concept):
        yield item.help
    yield from PRESETS
    yield from (name.replace("_", " ") for name in METHODS)


def of_javascript() -> Iterator[str]:
    """What our scripts write on the page or into a notification: literals that are words."""
    for path in sorted((ROOT / "javascript").glob("*.js")):
        code = re.sub(r"(?m)(^|\s)//.*$", "", path.read_text(encoding="utf-8"))
        yield from re.findall(r'(?:span\(|textContent = |\[\[)"([^"]+)"', code)
        yield from re.findall(r'"([A-Z][a-z]+(?: [\w.,;]+)+)"', code)


def of_settings() -> Iterator[str]:
    """The settings page's entries of our own; those of the built-in extension are the webui's, under its names."""
    source = (ROOT / "lib_lora" / "host" / "options.py").read_text(encoding="utf-8")
    yield options.OURS[1]
    yield from re.findall(r'OptionInfo\(True, "([^"]+)"', source)
    yield from (f"({text})" for text in re.findall(r'apply\.info\("([^"]+)"\)', source))


def of_axes() -> Iterator[str]:
    """The names of our axes in the X/Y/Z plot."""
    source = (ROOT / "lib_lora" / "host" / "axes.py").read_text(encoding="utf-8")
    yield from (axes.PREFIX + name for name in re.findall(r'f"\{PREFIX\}([^"]+)"', source))


def of_editor() -> Iterator[str]:
    """The card editor's fields of our own."""
    source = (ROOT / "lib_lora" / "ui" / "card_editor.py").read_text(encoding="utf-8")
    yield from re.findall(r'(?:label|info)="([^"]+)"', source)


def of_tabs() -> Iterator[str]:
    """The names of the tabs."""
    for name in ("lib_lora/host/callbacks.py", "lib_lora/ui/page.py"):
        source = (ROOT / name).read_text(encoding="utf-8")
        yield from re.findall(r'gr\.Tab\("([^"]+)"|\), "([^"]+)", "lorakit_train"\)', source)[0]


def ours() -> set[str]:
    """Everything but the built page and its states."""
    found = {*declared(), *of_javascript(), *of_settings(), *of_axes(), *of_editor(), *of_tabs()}
    return {text for text in found if is_words(text)}


def test_it_is_a_dictionary_without_empty_words(chinese: Mapping[str, str]) -> None:
    assert all(isinstance(text, str) and text.strip() == text != "" for text in chinese.values())
    assert all(key.strip() == key != "" for key in chinese)
    pairs = json.loads(FILE.read_text(encoding="utf-8"), object_pairs_hook=list)
    assert len(pairs) == len(chinese), "a key stands there twice"


def test_the_built_page_is_complete(chinese: Mapping[str, str], page: list[str]) -> None:
    assert len(page) > 300
    assert [text for text in page if text not in chinese and text != SD1.name] == []


def test_every_state_is_complete(chinese: Mapping[str, str], states: list[str]) -> None:
    assert len(states) > 200
    assert [text for text in states if text not in chinese] == []


def test_what_is_shown_elsewhere_is_complete(chinese: Mapping[str, str]) -> None:
    found = ours()
    assert {"Pause training", "Training has finished", "[LoRA kit] Strength", "Activation text"} <= found
    assert sorted(text for text in found if text not in chinese) == []


def test_words_of_a_user_are_never_within_ours(states: list[str], page: list[str]) -> None:
    """A name in the middle of a text node would keep the whole of it from being translated."""
    assert [text for text in (*states, *page) if MARK in text] == []


def test_nothing_is_translated_in_vain(
    chinese: Mapping[str, str], page: list[str], states: list[str], source: str
) -> None:
    known = {*page, *states, *ours(), *OF_GRADIO}
    assert [key for key in chinese if key not in known and key not in source] == []


def test_what_goes_wrong_is_said_like_that(source: str) -> None:
    """The sentences of every_state are those of the program, so that a changed one is noticed here."""
    parts = [part for text in every_state.ERRORS for part, is_value in pieces(text) if not is_value]
    clauses = [clause.strip(" ).,") for part in parts for clause in re.split("[;:(]", part)]
    told = [clause for clause in clauses if len(clause) > 15 and not clause.startswith("give a ")]  # those are composed
    assert len(told) > 60
    assert [clause for clause in told if clause not in source] == []


def test_it_is_chinese_and_keeps_numbers(chinese: Mapping[str, str]) -> None:
    for key, text in chinese.items():
        assert CHINESE.search(text) or key in UNCHANGED, key
        assert sorted(NUMBER.findall(key)) == sorted(NUMBER.findall(text)), key
        assert not re.search(r"[\u4e00-\u9fff][,;:!?]", text), f"western punctuation: {text}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("there is no folder 'a b'; check the name", ["there is no folder", "; check the name"]),
        ("making pictures ready: 3 of 12", ["making pictures ready:", "of"]),
        ("only with data.masks = alpha or folder", ["only with"]),
        ("out of memory at step 12; set training.batch_size = 1", ["out of memory at step", "; set"]),
        ("Step 12: rex-000012.safetensors is written.", ["Step", ":", "is written."]),
        ("needs about 8.2 GB, this GPU has 6 GB", ["needs about", ", this GPU has"]),
        ("the run's folder isn't there", ["the run's folder isn't there"]),
        ("rex: 12 of 14 layers applied", [":", "of", "layers applied"]),
        ("for SDXL, and the base is SD 1", ["for SDXL, and the base is"]),
    ],
)
def test_sentences_fall_apart_into_words_and_values(text: str, words: list[str]) -> None:
    assert [part for part, is_value in pieces(text) if not is_value] == words
    shown = re.sub(r"<[^>]*>", "", spoken(text)).replace("&#x27;", "'")
    assert shown == text, "read as one, it is as it was"


def test_spoken_is_escaped() -> None:
    assert "<script>" not in spoken("<script> in 'x<b>' and 5 <i>") and "&lt;script&gt;" in spoken("<script> 5")


def test_a_reader_sees_what_a_user_would() -> None:
    html = '<p title="Hint">One <b class="notranslate">Two</b> <code>Three</code><br>12 GB<i>data.folder</i></p>'
    assert words_of(html) == ["Hint", "One"]
    assert words_of(f"<p>{MARK}rex</p><p>on {MARK}rex</p>") == [f"on {MARK}rex"]
