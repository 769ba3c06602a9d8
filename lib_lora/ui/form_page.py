"""What the form does, on plain values: reading and filling it, starting a job, beginning anew. No gradio in here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib_lora.errors import BadConfig, LoraError
from lib_lora.miniature.nets import TEXT_CONFIG, UNET_CONFIG
from lib_lora.train.base_shapes import Widths
from lib_lora.train.config import JobConfig, fields, make_job
from lib_lora.train.estimate import Estimator
from lib_lora.train.machine import this_machine
from lib_lora.train.preset_store import PERSONAL, PresetStore
from lib_lora.train.presets import PRESETS
from lib_lora.train.wizard import (
    BEGINNINGS,
    GOOD,
    KINDS,
    OF_VERSION,
    QUALITIES,
    SEVERAL,
    SUBJECT,
    Machine,
    preset_for,
    runnable,
    savings,
    with_changes,
    with_quality,
)
from lib_lora.ui import html
from lib_lora.ui.form_state import Edits, Reading
from lib_lora.ui.trainer import Settings, Trainer

KIND_LABELS: Mapping[str, str] = dict(
    zip(KINDS, ("A subject", "A style", "A single picture", "Several concepts"), strict=True)
)
QUALITY_LABELS: Mapping[str, str] = dict(zip(QUALITIES, ("Quick look", "Good", "Thorough"), strict=True))
SMALL_SIDE = 128  # pixels: what only the miniature draws
MINIATURE_VAE = 5_000_000  # numbers, about
RUNS = "output.folder"  # this page keeps its runs in one place; one of another machine would only be refused
COUNT = 8  # values of the form
_KEY = re.compile(r"\b([a-z]+\.[a-z_0-9]+)\b")
Values = list[Any]  # folder, kind, quality, trigger, class word, name, steps, edits as JSON


class FormPage:
    """The form over a trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._usual_bases, self._miniature = Estimator(), Estimator(miniature_widths())

    @property
    def estimator(self) -> Estimator:
        """What knows the shapes of the base that is trained against."""
        return self._miniature if self.trainer.base().resolution <= SMALL_SIDE else self._usual_bases

    @property
    def store(self) -> PresetStore:
        """The user's own presets."""
        return PresetStore(self.trainer.home() / "presets")

    def machine(self) -> Machine:
        """What would train."""
        return this_machine(self.trainer.base().version)

    # ---- reading and filling

    def reading(self, values: Sequence[Any]) -> Reading:
        """The form's values by name. Raises BadConfig if they are not the form's."""
        if len(values) != COUNT:
            raise BadConfig(f"the form sent {len(values)} values instead of {COUNT}; load the page again")
        folder, kind, quality, trigger, class_word, name = (str(value or "") for value in values[:6])
        kind = _named(KIND_LABELS, kind, SUBJECT)
        edits = Edits.of_text(str(values[7] or ""), self._usual(kind, _named(QUALITY_LABELS, quality, GOOD)))
        return Reading(
            *(folder, kind, _named(QUALITY_LABELS, quality, GOOD), trigger, class_word, name),
            steps=values[6],
            edits=edits,
            several=kind == SEVERAL,
        )

    def read(self, values: Sequence[Any]) -> Settings:
        """The form's values as settings. Raises BadConfig naming the field that cannot be used."""
        return self.reading(values).settings()

    def fill(self, settings: Settings) -> Values:
        """The form's values for settings, e.g. of an earlier run. Raises LoraError if they cannot be used."""
        given = {key: value for key, value in settings.items() if key != RUNS}
        preset = str(given.get("preset") or "")
        given["preset"] = preset = preset if preset in PRESETS else next(iter(PRESETS))
        job = self.trainer.job(given)
        own = {key: value for key, value in given.items() if key in PERSONAL}
        edits = Edits.of_job(job, preset, self.trainer.job({"preset": preset, **own}))
        kind = self._kind(job, preset)
        return self._values(job, kind, GOOD, replace(self._begun_for(edits, kind, GOOD), restored=True))

    def base_kind(self) -> str:
        """What of the base the settings depend on."""
        facts = self.trainer.base()
        return f"{facts.version} {facts.resolution}"

    # ---- beginning

    def begin(self, kind: str, quality: str, preset: str = "") -> tuple[JobConfig, str, list[str]]:
        """The job that a kind and a quality begin with on this machine, its preset, and what was changed to fit.

        `preset`: another one than the kind's.
        """
        machine = self.machine()
        preset = preset or preset_for(kind, machine.version)
        given = self.trainer.job({"preset": preset}) if preset in PRESETS else self._job_of(preset)
        lacking = runnable(given, machine)
        given = with_changes(given, {**lacking, **with_quality(given, quality)})
        changes = savings(given, machine, self.estimator)
        return with_changes(given, changes), preset, [*lacking, *changes]

    def begun(self, form: Reading) -> tuple[JobConfig, str, list[str]]:
        """What the form began with, or would on the machine and base as they are now."""
        name = form.edits.preset
        own = name in PRESETS or name in self.store.names()
        of_kinds = name in (*BEGINNINGS.values(), *OF_VERSION.values())
        return self.begin(form.kind, form.quality, name if own and not of_kinds else "")

    def quality_chosen(self, values: Sequence[Any]) -> Values:
        """The form after its quality was chosen: the preset and what the user changed stay."""
        form = self.reading(values)
        return self._moved(form, values, *self.begun(form)[:2])

    def chosen(self, values: Sequence[Any]) -> Values:
        """The form after its kind was chosen: what the user changed stays."""
        form = self.reading(values)
        return self._moved(form, values, *self.begin(form.kind, form.quality)[:2])

    def _moved(self, form: Reading, values: Sequence[Any], job: JobConfig, preset: str) -> Values:
        edits, steps = form.edits.moved_to(job, preset, _steps_text(form.steps))
        edits = self._begun_for(edits, form.kind, form.quality)
        if form.several and not edits.concepts:
            first = {"folder": form.folder, "trigger": form.trigger, "class_word": form.class_word}
            edits = replace(edits, concepts=(first, {}))
        found = list(values)
        found[6], found[7] = _number(steps), edits.as_text()
        return found

    def rebased(self, values: Sequence[Any]) -> Values | None:
        """The form fitted to another base, kind or quality than it was begun for, what the user changed kept.

        None if it was begun for these. A kind or quality is missed where gradio drops what is pressed during an answer.
        """
        form = self.reading(values)
        edits = form.edits
        kind, _, quality = edits.asked.partition("/")
        if edits.asked and kind != form.kind:
            return self.chosen(values)
        if (edits.base and edits.base != self.base_kind()) or (edits.asked and quality != form.quality):
            return self.quality_chosen(values)
        return None

    def preset_chosen(self, name: str, values: Sequence[Any]) -> tuple[Values, str]:
        """The form with a preset's settings in every field of Advanced, and what to tell. Raises BadConfig."""
        form = self.reading(values)
        job = self._job_of(name)
        kind = self._kind_of_preset(name, form.kind) if name in PRESETS else form.kind
        edits = replace(Edits.of_job(job, name), concepts=form.edits.concepts, restored=form.edits.restored)
        edits = self._begun_for(edits, kind, GOOD)
        replaced = len(form.edits.changed())
        told = f"Preset {name!r} is set."
        if replaced:
            told += f" {replaced} settings that you had changed were replaced."
        return [*_top(values, kind, GOOD), job.training.steps, edits.as_text()], told

    def anew(self, kind: str, values: Sequence[Any], class_word: str | None = None) -> Values:
        """The form begun anew for a kind; folder, trigger and name stay."""
        job, preset, _ = self.begin(kind, GOOD)
        edits = replace(self._begun_for(Edits.of_job(job, preset), kind, GOOD), restored=True)
        found = [*_top(values, kind, GOOD), job.training.steps, edits.as_text()]
        if class_word is not None:
            found[4] = class_word
        return found

    def changed_by(self, changes: Mapping[str, Any], values: Sequence[Any]) -> Values:
        """The form with some settings changed, as the user would have."""
        form = self.reading(values)
        job = make_job({key: value for key, value in form.settings().items() if key != "preset"} | dict(changes))
        texts = Edits.of_job(job, form.edits.preset).values
        found = list(values)
        found[6] = job.training.steps
        found[7] = replace(form.edits, values=texts).as_text()
        return found

    def restored(self, values: Sequence[Any]) -> str:
        """The edits of remembered values, complete: what is new since then is as usual."""
        edits = self.reading(values).edits
        runs = {RUNS: self.trainer.job({}).output.folder}  # of this host only: its data may have been moved
        return replace(edits, values={**edits.values, **runs}, restored=True).as_text()

    # ---- starting

    def is_complete(self, values: Sequence[Any]) -> bool:
        """Whether what was remembered is in the form: before that nothing of it is submitted, or remembered."""
        try:
            return self.reading(values).edits.restored
        except LoraError:
            return True  # `start` tells it

    def start(self, values: Sequence[Any]) -> str:
        """Submit the form: a message as HTML."""
        try:
            settings = self.read(values)
            if settings["data.folder"]:
                self.trainer.allowed(settings["data.folder"], "data.folder")
            id = self.trainer.submit(settings)
        except LoraError as error:
            return told(error)
        status = self.trainer.status()
        name = str(settings["output.name"])
        if id in status.waiting:
            place = status.waiting.index(id) + 1
            return html.of_job(id, f"{name!r} waits in the queue, as number {place}.", "begins")
        return html.of_job(id, f"Training {name!r}.", "ends")

    # ---- parts

    def _begun_for(self, edits: Edits, kind: str, quality: str) -> Edits:
        return replace(edits, base=self.base_kind(), asked=f"{kind}/{quality}")

    def _job_of(self, preset: str) -> JobConfig:
        if preset not in PRESETS:
            return self.trainer.job(self.store.load(preset))
        job = self.trainer.job({"preset": preset})
        return with_changes(job, runnable(job, self.machine()))

    def _usual(self, kind: str, quality: str) -> Edits:
        job, preset, _ = self.begin(kind, quality)
        return Edits.of_job(job, preset)

    def _values(self, job: JobConfig, kind: str, quality: str, edits: Edits) -> Values:
        data = job.data
        top = [data.folder, KIND_LABELS[kind], QUALITY_LABELS[quality], data.trigger, data.class_word, job.output.name]
        return [*top, job.training.steps, edits.as_text()]

    def _kind(self, job: JobConfig, preset: str) -> str:
        return SEVERAL if job.concepts else self._kind_of_preset(preset, SUBJECT)

    @staticmethod
    def _kind_of_preset(name: str, usual: str) -> str:
        return next((kind for kind, preset in BEGINNINGS.items() if name.startswith(preset)), usual)


def miniature_widths() -> Widths:
    """The miniature's sizes."""
    channels, text = tuple(UNET_CONFIG["block_out_channels"]), int(TEXT_CONFIG["hidden_size"])
    return Widths("sd1", channels, int(UNET_CONFIG["cross_attention_dim"]), (text,), linear=False, vae=MINIATURE_VAE)


def told(error: LoraError) -> str:
    """An error as HTML; it says the field it is about, so that javascript goes there."""
    key = field_of(str(error))
    place = f'<span hidden data-lk-field="{key}"></span>' if key else ""
    return html.message(str(error), bad=True) + place


def field_of(text: str) -> str:
    """The setting a message is about, as `section.name`: the first it names; "" if that is none, or unknown."""
    known = {item.key for item in fields()}
    sections = {key.partition(".")[0] for key in known}
    named = (key for key in _KEY.findall(text) if key.partition(".")[0] in sections)
    first = next(named, "")
    return first if first in known else ""


def _top(values: Sequence[Any], kind: str, quality: str) -> Values:
    found = list(values[:6])
    found[1], found[2] = KIND_LABELS[kind], QUALITY_LABELS[quality]
    return found


def _named(labels: Mapping[str, str], label: str, usual: str) -> str:
    """The kind or quality that a label stands for."""
    return next((name for name, text in labels.items() if label in (name, text)), usual)


def _steps_text(steps: Any) -> str:
    return str(int(steps)) if isinstance(steps, (int, float)) and float(steps).is_integer() else str(steps)


def _number(text: Any) -> Any:
    return int(text) if str(text).isdigit() else text
