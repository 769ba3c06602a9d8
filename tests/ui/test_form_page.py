"""The form's values to settings and back, for every setting; beginning, presets and starting."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from lib_lora.errors import BadConfig
from lib_lora.train.config import CONCEPT, fields, make_job
from lib_lora.train.presets import PRESETS
from lib_lora.train.wizard import GOOD, KINDS, QUALITIES, Machine
from lib_lora.ui import form_page
from lib_lora.ui.form_html import CONCEPTS, MAIN
from lib_lora.ui.form_page import COUNT, KIND_LABELS, QUALITY_LABELS, FormPage, field_of
from lib_lora.ui.form_state import Edits
from tests.train.test_export import jobs
from tests.ui.fake_trainer import SD1, SDXL, FakeTrainer

FOLDER, KIND, QUALITY, WORD, CLASS, NAME, STEPS, STATE = range(COUNT)


@pytest.fixture
def page(tmp_path: Path) -> FormPage:
    return FormPage(FakeTrainer(tmp_path))


def words_of(html: str) -> str:
    """What is read of some HTML, without the quotes round names."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html)).replace("'", "").split())


def begun(page: FormPage, kind: str = "subject", **values: Any) -> list[Any]:
    """The form as a newcomer leaves it, but for values of Advanced ("section__name", as texts)."""
    form = page.anew(kind, ["/pictures/rex", "", "", "xulek", "dog", "rex", 0, "{}"])
    return changed(form, **values)


def changed(form: list[Any], **values: Any) -> list[Any]:
    state = json.loads(form[STATE])
    state["values"] |= {key.replace("__", "."): value for key, value in values.items()}
    return [*form[:STATE], json.dumps(state, separators=(",", ":"))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=jobs)
def test_any_job_comes_back_from_the_form(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    page = FormPage(FakeTrainer(tmp_path_factory.mktemp("form")))
    stripped = {k: v.strip().strip("'\"").strip() if k in MAIN and isinstance(v, str) else v for k, v in values.items()}
    job = page.trainer.job(stripped)
    found = page.read(page.fill({**stripped, "preset": "style"}))
    kept = {key: value for key, value in stripped.items() if key != "output.folder"}  # that is the host's own
    assert page.trainer.job(found) == page.trainer.job({**kept, "preset": "style"})
    assert {item.key for item in fields()} <= found.keys()
    assert page.read(page.fill(found)) == found
    assert job.output.name


@pytest.mark.parametrize("item", [item for item in fields() if item.key not in MAIN], ids=lambda item: item.key)
def test_every_setting_goes_from_field_to_job(page: FormPage, item: Any) -> None:
    others: dict[type, str | bool] = {bool: not item.default, int: "64", float: "0.5", str: "some text", tuple: "a\nb"}
    text = item.choices[-1] if item.choices else others[item.type]
    if item.name.startswith("train_unet"):
        text = True  # the only part that is trained
    if item.type in (int, float) and item.low is not None and not item.low <= float(text) <= item.high:
        text = str(item.high)
    values = begun(page, **{item.key.replace(".", "__"): text})
    job = page.trainer.job(page.read(values))
    expected = {tuple: ("a", "b")}.get(item.type, text if item.type in (str, bool) else item.type(text))
    assert job.get(item.key) == expected
    assert Edits.of_text(values[STATE], page.reading(values).edits).changed() == (
        [] if job.get(item.key) == page.begin("subject", GOOD)[0].get(item.key) else [item.key]
    )


def test_a_newcomer_needs_a_folder_only(page: FormPage) -> None:
    values = page.anew("subject", ["/pictures/rex", "", "", "", "", "", 0, "{}"])
    told = page.start(values)
    assert "Training network." in words_of(told) and "lk-bad" not in told
    assert page.trainer.submitted[0]["data.folder"] == "/pictures/rex"  # type: ignore[attr-defined]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_is_exactly_the_preset(page: FormPage, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    monkeypatch.setattr(form_page, "this_machine", lambda version: Machine(version, 24 * 10**9, True))
    values, told = page.preset_chosen(preset, begun(page))
    assert preset in words_of(told)
    own = {"data.folder": "/pictures/rex", "data.trigger": "xulek", "data.class_word": "dog", "output.name": "rex"}
    assert page.trainer.job(page.read(values)) == page.trainer.job({"preset": preset, **own})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", list(QUALITIES))
def test_kind_and_quality_keep_what_was_changed(page: FormPage, kind: str, quality: str) -> None:
    values = begun(page, network__rank="24", optimizer__lr="3e-4")
    values[KIND], values[QUALITY] = KIND_LABELS[kind], QUALITY_LABELS[quality]
    job = make_job({k: v for k, v in page.reading(page.chosen(values)).own().items() if k != "preset"})
    expected = page.begin(kind, quality)[0]
    assert job.network.rank == 24 and job.optimizer.lr == 3e-4
    assert job.training == expected.training and job.network.alpha == expected.network.alpha


def test_steps_of_ones_own_stay(page: FormPage) -> None:
    values = begun(page)
    values[STEPS] = 777
    values[QUALITY] = QUALITY_LABELS["thorough"]
    assert page.chosen(values)[STEPS] == 777
    values[STEPS] = 600
    assert page.chosen(values)[STEPS] == 1200


def test_quality_keeps_the_preset(page: FormPage) -> None:
    page.store.save("mine", {"network.rank": 5, "training.steps": 300})
    for name, steps in (("pivotal tuning", 2000), ("mine", 600)):
        values, _ = page.preset_chosen(name, begun(page))
        values[QUALITY] = QUALITY_LABELS["thorough"]
        found = page.quality_chosen(changed(values, optimizer__lr="7e-5"))
        assert (found[STEPS], page.reading(found).edits.preset) == (steps, name)
        settings = page.read(found)
        assert settings["optimizer.lr"] == 7e-5
        expected = page.trainer.job(page.store.load(name) if name == "mine" else {"preset": name})
        assert settings["network.rank"] == expected.network.rank and settings["method.name"] == expected.method.name
    page.store.delete("mine")
    found[QUALITY] = QUALITY_LABELS["good"]
    assert page.reading(page.quality_chosen(found)).edits.preset == "subject"  # what is gone cannot be kept


def test_several_concepts_begin_with_two_rows(page: FormPage) -> None:
    values = begun(page)
    values[KIND] = KIND_LABELS["several concepts"]
    values = page.chosen(values)
    rows = page.reading(values).edits.concepts
    assert len(rows) == 2 and rows[0]["folder"] == "/pictures/rex" and rows[0]["trigger"] == "xulek"
    with pytest.raises(BadConfig, match="concept 2 has neither"):
        page.read(values)


def test_concepts_come_back(page: FormPage) -> None:
    more = range(CONCEPTS + 4)  # than the page shows
    concepts = [{"folder": f"/p{n}", "trigger": f"w{n}", "repeats": n + 1, "class_word": "x"} for n in more]
    found = page.read(page.fill({CONCEPT: concepts, "data.folder": "/p"}))
    assert make_job({CONCEPT: found[CONCEPT]}).concepts == make_job({CONCEPT: concepts}).concepts
    assert page.read(page.fill(found)) == found


def test_concepts_are_sent_only_for_several(page: FormPage) -> None:
    values = page.fill({CONCEPT: [{"trigger": "a"}], "data.folder": "/p"})
    values[KIND] = KIND_LABELS["style"]
    assert CONCEPT not in page.read(values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"optimizer__lr": "fast"}, "optimizer.lr"),
        ({"network__rank": "1.5"}, "network.rank"),
        ({"data__resolution": "100"}, "data.resolution"),
        ({"network__train_unet": False, "network__train_text_encoder": False}, "network.train_unet"),
    ],
)
def test_bad_input_names_its_field_and_starts_nothing(page: FormPage, values: dict[str, Any], named: str) -> None:
    told = page.start(begun(page, **values))
    assert "lk-bad" in told and f'data-lk-field="{named}"' in told
    assert page.trainer.submitted == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("steps", [None, "", "many", 1.5, 0, float("nan"), [1]])
def test_bad_steps_are_told(page: FormPage, steps: Any) -> None:
    values = begun(page)
    values[STEPS] = steps
    assert 'data-lk-field="training.steps"' in page.start(values)


def test_a_second_job_waits(page: FormPage) -> None:
    assert "Training rex." in words_of(page.start(begun(page)))
    assert "rex waits in the queue, as number 1." in words_of(page.start(begun(page)))


def test_refusals_are_escaped(page: FormPage) -> None:
    page.trainer.errors["submit"] = BadConfig("<b>data.folder</b> is no folder")  # type: ignore[attr-defined]
    told = page.start(begun(page))
    assert "<b>" not in told and 'data-lk-field="data.folder"' in told


def test_a_folder_outside_is_refused(page: FormPage, tmp_path: Path) -> None:
    page.trainer.outside = (tmp_path / "secret",)  # type: ignore[attr-defined]
    values = begun(page)
    values[FOLDER] = str(tmp_path / "secret" / "x")
    assert 'data-lk-field="data.folder"' in page.start(values)


@pytest.mark.parametrize("state", ["", "[", "[1]", "5", "x" * 2_000_000, '{"values": 3, "concepts": 4}', None])
def test_a_broken_state_is_told_or_usual(page: FormPage, state: Any) -> None:
    values = begun(page)
    values[STATE] = state
    told = page.start(values)
    assert "load the page again" in words_of(told) or "Training rex." in words_of(told)


def test_unknown_and_missing_values_are_as_usual(page: FormPage) -> None:
    values = begun(page)
    values[STATE] = json.dumps({"values": {"network.rank": "5", "no.such": "x", "optimizer.lr": 7}, "preset": 9})
    job = page.trainer.job(page.read(values))
    assert job.network.rank == 5 and job.optimizer.lr == 1e-4


def test_the_folder_of_runs_is_this_hosts_after_a_move_and_in_a_job_from_elsewhere(page: FormPage) -> None:
    own = page.trainer.job({}).output.folder
    remembered = begun(page, output__folder="/the/old/place/runs", network__rank="24")
    found = [*remembered[:STATE], page.restored(remembered)]
    assert (page.read(found)["output.folder"], page.read(found)["network.rank"]) == (own, 24)
    filled = page.fill({**page.read(remembered), "output.folder": "C:/another/machine"})
    assert (page.read(filled)["output.folder"], page.read(filled)["network.rank"]) == (own, 24)


def test_too_few_values_are_told(page: FormPage) -> None:
    assert "load the page again" in page.start(["/p"])


def test_another_base_moves_what_was_not_changed(page: FormPage) -> None:
    values = begun(page, network__rank="24")
    assert page.rebased(values) is None
    page.trainer.facts = SDXL  # type: ignore[attr-defined]
    moved = page.rebased(values)
    assert moved is not None
    job = page.trainer.job(page.read(moved))
    assert (job.data.resolution, job.network.rank, job.training.checkpointing) == (1024, 24, True)
    assert page.rebased(moved) is None
    page.trainer.facts = SD1  # type: ignore[attr-defined]
    back = page.rebased(moved)
    assert back is not None and page.read(back) == page.read(values)


def test_a_small_card_changes_the_beginning(page: FormPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_page, "this_machine", lambda version: Machine(version, 6 * 10**9, True))
    job, _, saved = page.begin("subject", GOOD)
    assert job.training.checkpointing and "training.checkpointing" in saved


@pytest.mark.parametrize("preset", ["DreamBooth", "subject, SDXL", "subject, 6 GB"])
def test_presets_do_without_packages_that_are_not_here(
    page: FormPage, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    monkeypatch.setattr(form_page, "this_machine", lambda version: Machine(version, 24 * 10**9, False))
    filled, _ = page.preset_chosen(preset, begun(page))
    assert page.read(filled)["optimizer.name"] == "adamw"
    _, _, told = page.begun(page.reading(filled)) if preset == "DreamBooth" else page.begin("subject", GOOD, preset)
    assert told[0] == "optimizer.name"
    monkeypatch.setattr(form_page, "this_machine", lambda version: Machine(version, 24 * 10**9, True))
    filled, _ = page.preset_chosen(preset, begun(page))
    assert page.read(filled)["optimizer.name"] == "adamw8bit"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("optimizer.lr = 'x' is not accepted", "optimizer.lr"),
        ("nothing here", ""),
        ("file.txt then network.rank", "network.rank"),
        ("data.nope", ""),
        ("setting 'network.rnak' is unknown; known are network.alpha, network.rank", ""),
    ],
)
def test_the_field_a_message_names(text: str, key: str) -> None:
    assert field_of(text) == key
