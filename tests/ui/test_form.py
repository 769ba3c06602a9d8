"""The form in gradio, and its events on plain values: what it says of itself, remembers, saves and reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora.errors import BadConfig
from lib_lora.train.wizard import Machine
from lib_lora.ui import form, form_html, form_lines, form_page
from lib_lora.ui.form import Events, Form
from lib_lora.ui.form_look import Looker
from lib_lora.ui.form_memory import FormMemory
from lib_lora.ui.form_page import FormPage
from lib_lora.ui.form_presets import PresetEvents
from lib_lora.ui.form_toml import TomlEvents
from tests.ui.fake_trainer import INPAINTING, SD1, SDXL, FakeTrainer
from tests.ui.test_form_page import KIND, NAME, QUALITY, STATE, STEPS, WORD, begun, changed, words_of

LOOKED = ("name", "base", "trigger", "name_line", "estimate", "hints", "presets", "refused", "steps", "state", "seen")


@pytest.fixture
def trainer(tmp_path: Path) -> FakeTrainer:
    return FakeTrainer(tmp_path)


@pytest.fixture
def events(trainer: FakeTrainer) -> Events:
    page = FormPage(trainer)
    return Events(page, Looker(page))


def look(events: Events, values: list[Any], seen: str = "{}") -> dict[str, Any]:
    """What a look sends: values, None for what stays; "choices" of the presets."""
    found = dict(zip(LOOKED, events.look(*values, seen), strict=True))
    chosen = found["presets"].get("choices") if isinstance(found["presets"], dict) else None
    plain = {name: one.get("value") if isinstance(one, dict) else one for name, one in found.items()}
    return {**plain, "presets": chosen}


def values_of(updates: list[Any], held: Sequence[Any] = ()) -> list[Any]:
    """What the form's fields hold after these updates; `held` before, or nothing."""
    fields = [update for update in updates if isinstance(update, dict)]
    return [update.get("value", old) for update, old in zip(fields, held or [""] * len(fields), strict=True)]


def pictures(folder: Path, count: int) -> str:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    return str(folder)


# ---- in gradio


def build(trainer: FakeTrainer) -> tuple[Any, Form]:
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        with gr.Column(elem_classes=["lorakit"]):
            folder = gr.Textbox(elem_id="lorakit_folder")
            found = form.add(trainer, folder)
    return blocks, found


def test_the_form_is_built_quickly_with_every_part(trainer: FakeTrainer) -> None:
    started = time.perf_counter()
    blocks, found = build(trainer)
    took = time.perf_counter() - started
    ids = {str(block.elem_id) for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    assert {"lorakit_start", "lorakit_queue", "lorakit_kind", "lorakit_form_look", "lorakit_form_restore"} <= ids
    assert set(form_html.PLACES.values()) <= ids
    assert len(found.inputs) == form_page.COUNT
    assert took < 10  # a second on an idle machine; see the note of the issue for the figure
    assert {name for name, _ in trainer.calls} <= {"base", "job"}  # nothing is read from disk for it


def test_what_fill_sends_is_what_read_reads(trainer: FakeTrainer) -> None:
    _, found = build(trainer)
    settings = {"data.folder": "/p", "training.steps": 20000, "optimizer.lr": 3e-5, "output.name": "rex"}
    updates = found.fill(settings)
    assert updates[STEPS]["maximum"] >= 20000
    read = found.read(values_of(updates))
    assert {key: read[key] for key in settings} == settings


def test_events_are_private_and_need_no_queue(trainer: FakeTrainer) -> None:
    blocks, _ = build(trainer)
    config = blocks.get_config_file()["dependencies"]
    assert len(config) >= 12
    assert all(one["queue"] is False for one in config)
    assert all(one.get("api_name") is False or one.get("api_visibility") == "private" for one in config)


class Checker(HTMLParser):
    """Notes ids, and elements that are left open."""

    EMPTY = ("input", "br", "img")

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.labels += [found["for"] or ""] if "for" in found else []
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_is_whole_and_every_field_has_a_label() -> None:
    checker = Checker()
    checker.feed(form_html.advanced() + form_html.concepts())
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    fields = {one for one in checker.ids if one.startswith(("lkf-", "lkc-")) and not one.endswith("-help")}
    assert fields == set(checker.labels)


# ---- what it says of itself


def test_a_look_says_everything_once(events: Events, trainer: FakeTrainer, tmp_path: Path) -> None:
    values = begun(events.page)
    values[0] = pictures(tmp_path / "rex", 12)
    first = look(events, values)
    assert "v1-5-pruned-emaonly" in first["base"] and "SD 1" in first["base"]
    assert "a rare word" in first["trigger"] and "<lora:rex:1>" in words_of(first["name_line"])
    assert "1200 visits, about 100 of each of 12 pictures" in words_of(first["estimate"])
    assert "19 MB" in words_of(first["estimate"])
    assert "subject" in first["presets"] and "subject, SDXL" not in first["presets"]
    assert "for SDXL" in words_of(first["refused"])
    hints = json.loads(first["hints"])
    assert hints["muted"]["network.factor"] and hints["pictures"] == 12 and hints["several"] is False
    second = look(events, values, first["seen"])
    assert [second[name] for name in LOOKED[:-1]] == [None] * (len(LOOKED) - 1)
    third = look(events, changed(values, network__rank="32"), second["seen"])
    assert "38 MB" in third["estimate"] and third["base"] is None and third["hints"] is None


def test_a_bad_value_is_said_at_once(events: Events) -> None:
    found = look(events, begun(events.page, optimizer__lr="fast"))
    assert "optimizer.lr" in found["estimate"] and json.loads(found["hints"])["bad"] == "optimizer.lr"


def test_a_base_that_cannot_be_trained_says_why(events: Events, trainer: FakeTrainer) -> None:
    trainer.facts = INPAINTING
    assert "inpainting model" in words_of(look(events, begun(events.page))["base"])


def test_a_name_is_proposed_and_a_taken_one_told(events: Events, tmp_path: Path) -> None:
    networks = tmp_path / "networks"
    networks.mkdir()
    values = begun(events.page)
    values[NAME] = ""
    first = look(events, values)
    assert first["name"] == "xulek-dog"
    (networks / "xulek-dog.safetensors").touch()
    values[NAME] = "xulek-dog"  # as it was proposed: another one is, unasked
    second = look(events, values, first["seen"])
    assert second["name"] == "xulek-dog-2"
    values[NAME] = "Xulek-Dog"  # as somebody typed: only told
    third = look(events, values, second["seen"])
    assert third["name"] is None
    assert "such a file already" in third["name_line"] and 'data-value="Xulek-Dog-2"' in third["name_line"]


def test_the_line_says_what_this_method_makes(events: Events, tmp_path: Path) -> None:
    def line(**settings: Any) -> str:
        return words_of(look(events, begun(events.page, **settings))["name_line"])

    assert line(method__name="textual_inversion") == "Prompt: rex"
    assert line(method__name="hypernetwork") == "Prompt: <hypernet:rex:1>"
    assert line(method__name="dreambooth") == "Checkpoint: rex.safetensors"
    assert (
        line(method__name="dreambooth", method__as_lora="32") == "Prompt: <lora:rex-lora:1> Checkpoint: rex.safetensors"
    )
    assert line(method__name="pivotal_tuning").startswith("Prompt: <lora:rex:1> ")
    assert line(method__name="textual_inversion", optimizer__lr="fast") == "Prompt: <lora:rex:1>"


def test_a_known_word_is_not_recommended(events: Events) -> None:
    values = begun(events.page)
    values[WORD] = "dog"
    found = look(events, values)["trigger"]
    assert "lkf-poor" in found and "knows well" in found


def test_a_suggestion_is_another_rare_word_each_time(events: Events) -> None:
    first = events.suggest("")
    second = events.suggest(first)
    assert first and second and first != second
    assert events.suggest("dog") == first


def test_everything_from_users_is_escaped(events: Events, trainer: FakeTrainer, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    trainer.facts = type(SD1)(evil, "sd1", 512, evil)
    values = begun(events.page)
    values[WORD] = values[4] = values[NAME] = evil
    (tmp_path / "networks").mkdir()
    found = look(events, values)
    assert all("<img" not in str(found[name]) for name in ("base", "trigger", "name_line", "estimate", "refused"))


def test_a_small_gpu_is_told_what_does_not_fit(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_page, "this_machine", lambda version: Machine(version, 6 * 10**9, False))
    found = look(events, begun(events.page))
    assert "training.checkpointing" in found["estimate"] and "of 6.0 GB" in words_of(found["estimate"])
    assert "DreamBooth" in found["refused"] and "6 GB" in found["refused"]
    large = look(events, begun(events.page, training__batch_size="16"))
    assert "This does not fit: it needs about" in words_of(large["estimate"])


def test_another_base_moves_the_form(events: Events, trainer: FakeTrainer) -> None:
    values = begun(events.page)
    trainer.facts = SDXL
    found = look(events, values)
    assert json.loads(found["state"])["values"]["data.resolution"] == "1024" and found["steps"] == 1200
    values[STEPS], values[STATE] = found["steps"], found["state"]
    assert look(events, values, found["seen"])["state"] is None


@pytest.mark.parametrize(
    ("size", "words"), [(500, "0 kB"), (311_000, "0.3 MB"), (18_986_066, "19 MB"), (2.13e9, "2.1 GB")]
)
def test_sizes(size: float, words: str) -> None:
    assert form_lines.size_words(size) == words


# ---- remembering


def test_what_was_typed_comes_back_after_a_restart(events: Events, trainer: FakeTrainer) -> None:
    values = values_of(events.restore(""))
    assert values[WORD] and json.loads(values[STATE])["restored"] is True
    values = changed(values, network__rank="no number")
    values[KIND], values[NAME] = "A style", "mine"
    look(events, values)
    page = FormPage(FakeTrainer(trainer.root))
    again = values_of(Events(page, Looker(page)).restore(""))
    assert again[NAME] == "mine" and again[KIND] == "A style"
    assert json.loads(again[STATE])["values"]["network.rank"] == "no number"


@pytest.mark.parametrize("steps", [None, "", float("inf"), float("nan")])
def test_steps_that_are_no_number_at_a_look_lose_nothing_of_the_form(events: Events, steps: Any) -> None:
    """A look happens while somebody has emptied the field to type another number."""
    values = changed(values_of(events.restore("")), network__rank="24")
    usual, values[NAME], values[STEPS] = values[STEPS], "mine", steps
    look(events, values)
    again = values_of(events.restore(""))
    assert again[NAME] == "mine" and again[STEPS] == usual
    assert json.loads(again[STATE])["values"]["network.rank"] == "24"


def test_nothing_is_remembered_before_it_was_restored(events: Events, trainer: FakeTrainer) -> None:
    values = begun(events.page)
    state = {**json.loads(values[STATE]), "restored": False}
    look(events, [*values[:STATE], json.dumps(state)])
    assert FormMemory(trainer.home()).load() is None


def test_a_tab_where_nothing_is_typed_forgets_nothing_of_another(events: Events, trainer: FakeTrainer) -> None:
    """Each asks for news every few seconds; the one that was typed in last is the one that counts."""
    idle = values_of(events.restore(""))
    seen = look(events, idle)["seen"]
    typed = [*idle]
    typed[NAME] = "mine"
    look(events, typed)
    look(events, idle, seen)
    assert values_of(events.restore(""))[NAME] == "mine"
    idle[NAME] = "other"
    look(events, idle, seen)
    assert values_of(events.restore(""))[NAME] == "other"


def test_a_proposed_name_follows_the_trigger_after_a_reload_too(events: Events) -> None:
    values = begun(events.page)
    values[NAME] = ""
    first = look(events, values)
    values[NAME] = first["name"]
    assert values[NAME] == "xulek-dog"
    look(events, values, first["seen"])
    *fields, seen = events.restore("")
    again = values_of(fields)
    assert again[NAME] == "xulek-dog"
    again[WORD] = "sks"
    assert look(events, again, seen)["name"] == "sks-dog"
    again[NAME] = "mine"
    assert look(events, again, seen)["name"] is None


def test_another_kind_or_quality_sends_nothing_that_somebody_may_type_meanwhile(events: Events) -> None:
    values = begun(events.page)
    values[KIND] = "A style"
    sent = [update.get("value") for update in events.kind(*values)]
    assert sent[:STEPS] == [None] * STEPS and json.loads(sent[STATE])["asked"] == "style/good"
    values[2] = "Thorough"
    sent = [update.get("value") for update in events.quality(*values)]
    assert sent[:STEPS] == [None] * STEPS and sent[STEPS] > values[STEPS]


@pytest.mark.parametrize("field, label", [(KIND, "A style"), (KIND, "A single picture"), (2, "Thorough")])
def test_a_choice_that_gradio_dropped_is_seen_at_the_next_look(events: Events, field: int, label: str) -> None:
    values = begun(events.page, network__rank="24")
    seen = look(events, values)["seen"]
    values[field] = label
    found = look(events, values, seen)
    values[STEPS], values[STATE] = found["steps"], found["state"]
    wished = (events.kind if field == KIND else events.quality)(*begun_with(events, field, label))
    assert values[STATE] == wished[STATE]["value"] and values[STEPS] == wished[STEPS].get("value", values[STEPS])
    assert json.loads(values[STATE])["values"]["network.rank"] == "24"
    assert look(events, values, found["seen"])["state"] is None


def begun_with(events: Events, field: int, label: str) -> list[Any]:
    values = begun(events.page, network__rank="24")
    values[field] = label
    return values


@pytest.mark.parametrize("state", ["", "xx", "[]"])
def test_a_memory_whose_settings_cannot_be_read_begins_anew(events: Events, trainer: FakeTrainer, state: str) -> None:
    """Else the page would ask for it for ever, and nothing could be trained."""
    FormMemory(trainer.home()).save([*begun(events.page)[:STATE], state], "")
    found = values_of(events.restore(""))
    assert json.loads(found[STATE])["restored"] is True and found[STEPS] == 600


def test_what_was_sent_is_remembered(events: Events, trainer: FakeTrainer) -> None:
    values = begun(events.page)
    assert "Training" in words_of(events.start(*values, "{}"))
    assert FormMemory(trainer.home()).load() == (values, "")


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b'{"values": [1, 2]}', b'{"values": ["a","b","c","d","e","f",1,"{}"]}', b"[" * 99999]
)
def test_a_damaged_memory_begins_anew(events: Events, trainer: FakeTrainer, data: bytes) -> None:
    (trainer.home() / "form.json").write_bytes(data)
    found = events.restore("/p")
    assert "value" not in found[0], "what somebody has typed by now stays"
    assert events.page.read(["/p", *values_of(found[1:])])["training.steps"] == 600


# ---- presets, wizards, job files


@pytest.fixture
def presets(trainer: FakeTrainer) -> PresetEvents:
    return PresetEvents(FormPage(trainer))


def test_a_preset_is_saved_used_replaced_and_deleted(presets: PresetEvents) -> None:
    values = begun(presets.page, network__rank="24")
    message, ask, pending, chosen = presets.save("mine", *values)
    assert (
        "is saved" in words_of(message)
        and not ask["visible"]
        and chosen["value"] == "mine"
        and "mine" in chosen["choices"]
    )
    *filled, told = presets.use("mine", *begun(presets.page))
    assert "mine is set" in words_of(told)
    assert presets.page.read(values_of(filled, begun(presets.page)))["network.rank"] == 24
    other = begun(presets.page, network__rank="7")
    message, ask, pending, _ = presets.save("Mine", *other)
    assert (
        "Replace it?" in words_of(message) and ask["visible"] and presets.page.store.load("mine")["network.rank"] == 24
    )
    assert presets.no()[1]["visible"] is False and presets.page.store.load("mine")["network.rank"] == 24
    presets.yes(pending, *other)
    assert presets.page.store.load("mine")["network.rank"] == 7
    _, ask, pending, _ = presets.delete("mine")
    assert ask["visible"] and presets.page.store.names() == ["mine"]
    message, *_ = presets.yes(pending, *other)
    assert "is deleted" in words_of(message) and presets.page.store.names() == []


@pytest.mark.parametrize("name", ["subject", "nope", "../x", ""])
def test_only_own_presets_are_deleted(presets: PresetEvents, name: str) -> None:
    message, ask, pending, _ = presets.delete(name)
    assert "lk-bad" in message and not ask["visible"] and pending == ""


@pytest.mark.parametrize("pending", ["", "delete:../x", "delete:nope", "other:x", "save:../x"])
def test_an_answer_to_nothing_does_nothing(presets: PresetEvents, pending: str) -> None:
    presets.page.store.save("mine", {})
    presets.yes(pending, *begun(presets.page))
    assert presets.page.store.names() == ["mine"]


def test_a_preset_is_not_saved_of_bad_values(presets: PresetEvents) -> None:
    message, *_ = presets.save("mine", *begun(presets.page, optimizer__lr="x"))
    assert 'data-lk-field="optimizer.lr"' in message and presets.page.store.names() == []


def test_an_unknown_preset_leaves_the_form(presets: PresetEvents) -> None:
    *updates, message = presets.use("nope", *begun(presets.page))
    assert "lk-bad" in message and all("value" not in update for update in updates)


@pytest.mark.parametrize(
    ("label", "kind", "word"),
    [("A person", "A subject", "person"), ("An object", "A subject", ""), ("A style", "A style", "")],
)
def test_wizards_begin_anew(presets: PresetEvents, label: str, kind: str, word: str) -> None:
    values = begun(presets.page, network__rank="24")
    values[4] = ""
    *filled, _ = presets.wizard(label)(*values)
    found = values_of(filled, values)
    assert (found[KIND], found[4], found[QUALITY]) == (kind, word, "Good")
    assert presets.page.reading(found).edits.changed() == [] and found[0] == values[0]


def test_a_person_has_the_class_that_was_typed(presets: PresetEvents) -> None:
    values = begun(presets.page)
    *filled, _ = presets.wizard("A person")(*values)
    assert values_of(filled, values)[4] == "dog"


def test_low_memory_changes_what_costs_memory(presets: PresetEvents) -> None:
    values = begun(presets.page, network__rank="24")
    *filled, _ = presets.low_memory(*values)
    settings = presets.page.read(values_of(filled, values))
    assert (
        settings["training.batch_size"] == 1 and settings["training.checkpointing"] and settings["network.rank"] == 24
    )
    assert (
        settings["training.steps"] == 1200
        and "training.batch_size" in presets.page.reading(values_of(filled)).edits.changed()
    )


def test_a_job_file_goes_out_and_comes_in(trainer: FakeTrainer) -> None:
    events = TomlEvents(FormPage(trainer))
    values = begun(events.page, network__rank="24", optimizer__lr="3e-5", training__epochs="7")
    text, commands, message = events.show(*values)
    assert message == "" and "python -m lib_lora train rex.toml" in commands and "accelerate launch" in commands
    *filled, told = events.read(text, *begun(events.page))
    assert "lk-bad" not in told
    before, after = events.page.read(values), events.page.read(values_of(filled))
    assert before == after


def test_a_short_job_means_what_it_means_elsewhere(trainer: FakeTrainer) -> None:
    events = TomlEvents(FormPage(trainer))
    *filled, _ = events.read("[network]\nrank = 5\n[data]\ntrigger = 'abc'\n", *begun(events.page))
    settings = events.page.read(values_of(filled))
    assert (settings["network.rank"], settings["training.steps"], settings["data.trigger"]) == (5, 1000, "abc")
    assert settings["output.folder"] == trainer.defaults["output.folder"]


@pytest.mark.parametrize("text", ["", "x", "[network]\nrank = 0", "[network]\nnope = 1"])
def test_what_is_no_job_leaves_the_form(trainer: FakeTrainer, text: str) -> None:
    *updates, message = TomlEvents(FormPage(trainer)).read(text, *begun(FormPage(trainer)))
    assert "lk-bad" in message and all("value" not in update for update in updates)


def test_errors_of_the_trainer_are_shown(events: Events, trainer: FakeTrainer) -> None:
    values = begun(events.page)
    trainer.errors["job"] = BadConfig("no model is loaded; choose a checkpoint")
    assert "no model is loaded" in words_of(events.start(*values, "{}"))
    assert "no model is loaded" in look(events, values)["estimate"]
    build(trainer)  # and the page comes up


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same on every machine."""
    monkeypatch.setattr(form_page, "this_machine", lambda version: Machine(version))
    yield
