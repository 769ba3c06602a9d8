"""What the form holds beside its few gradio fields: the texts of every other setting, as one JSON text, both ways."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lib_lora.errors import BadConfig
from lib_lora.train.config import CONCEPT, JobConfig, fields, find
from lib_lora.train.presets import PRESETS
from lib_lora.ui.fields import checked, text_of
from lib_lora.ui.form_html import MAIN, concept_fields

Text = Any  # str, or bool for switches
STEPS = "training.steps"
FOLDERS = ("folder", "class_folder")
LARGEST = 1 << 20  # characters


@dataclass(frozen=True)
class Edits:
    """`values` are the texts as they are now, `start` those the form began with (a preset's, fitted to the machine):
    what differs was changed by the user. `concepts` are rows of texts. Keys are `section.name`; `start` has the steps
    too.
    """

    values: Mapping[str, Text]
    start: Mapping[str, Text]
    concepts: tuple[Mapping[str, str], ...] = ()
    preset: str = next(iter(PRESETS))
    restored: bool = False  # what was remembered is in it, so it may be remembered again
    base: str = ""  # the kind of base that `start` is fitted to
    asked: str = ""  # the kind and the quality that were chosen above when the form was begun

    @classmethod
    def of_job(cls, job: JobConfig, preset: str, start: JobConfig | None = None) -> Edits:
        """The texts of a job. `start`: the job whose values do not count as changed; the same by default."""
        rows = tuple(
            {item.name: str(text_of(item, getattr(concept, item.name))) for item in concept_fields()}
            for concept in job.concepts
        )
        texts, beginning = texts_of(job), texts_of(start or job)
        values = {key: text for key, text in texts.items() if key not in MAIN}
        compared = {key: text for key, text in beginning.items() if key not in MAIN or key == STEPS}
        return cls(values, compared, rows, preset)

    @classmethod
    def of_text(cls, text: str, usual: Edits) -> Edits:
        """What a JSON text says, `usual` where it says nothing; unknown keys are left out. Raises BadConfig."""
        try:
            if len(text) > LARGEST:
                raise ValueError("too long")
            found = json.loads(text)
            if not isinstance(found, dict):
                raise ValueError("no object")
        except (ValueError, TypeError, RecursionError) as error:
            raise BadConfig(f"the form sent no values ({error}); load the page again") from None
        rows = found.get("concepts")
        names = [item.name for item in concept_fields()]
        concepts = tuple(
            {name: str(row.get(name, "")) for name in names}
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict)
        )
        preset = found.get("preset")
        return cls(
            _merged(usual.values, found.get("values")),
            _merged(usual.start, found.get("start")),
            concepts,
            preset if isinstance(preset, str) else usual.preset,
            found.get("restored") is True,
            str(found.get("base") or ""),
            str(found.get("asked") or ""),
        )

    def as_text(self) -> str:
        """The same as JSON."""
        return json.dumps(
            {
                "values": dict(self.values),
                "start": dict(self.start),
                "concepts": [dict(row) for row in self.concepts],
                "preset": self.preset,
                "restored": self.restored,
                "base": self.base,
                "asked": self.asked,
            },
            ensure_ascii=False,
        )

    def settings(self) -> dict[str, Any]:
        """The values, checked, without concepts. Raises BadConfig naming the first that cannot be used."""
        known = {item.key: item for item in fields()}
        return {key: checked(known[key], text) for key, text in self.values.items()}

    def tables(self) -> list[dict[str, Any]]:
        """The concepts, checked. Raises BadConfig naming row and field."""
        if not self.concepts:
            raise BadConfig("several concepts are chosen, but there is none; add one, or choose another kind above")
        return [self._table(number, row) for number, row in enumerate(self.concepts, 1)]

    def moved_to(self, start: JobConfig, preset: str, steps: Text) -> tuple[Edits, Text]:
        """The form begun anew from `start`, what the user changed kept; and the steps."""
        fresh = Edits.of_job(start, preset)
        kept = {key: self._kept(key, self.values.get(key), fresh) for key in fresh.values}
        moved = replace(fresh, values=kept, concepts=self.concepts, restored=self.restored)
        return moved, self._kept(STEPS, steps, fresh)

    def changed(self) -> list[str]:
        """The settings that differ from the beginning."""
        return [key for key, text in self.values.items() if text != self.start.get(key)]

    def _kept(self, key: str, now: Text, fresh: Edits) -> Text:
        untouched = now is None or now == self.start.get(key)
        return fresh.start[key] if untouched else now

    def _table(self, number: int, row: Mapping[str, str]) -> dict[str, Any]:
        if not (row.get("folder", "").strip() or row.get("trigger", "").strip()):
            raise BadConfig(f"concept {number} has neither folder nor trigger; fill it in or remove it")
        table = {}
        for item in concept_fields():
            text = row.get(item.name, "")
            text = text.strip().strip("'\"") if item.name in FOLDERS else text
            try:
                table[item.name] = checked(item, text or text_of(item, item.default))
            except BadConfig as error:
                raise BadConfig(f"concept {number}: {error}") from None
        return table


@dataclass
class Reading:
    """The form's values by name, as its components hold them."""

    folder: str
    kind: str
    quality: str
    trigger: str
    class_word: str
    name: str
    steps: Any
    edits: Edits
    several: bool = field(default=False)

    def own(self) -> dict[str, Any]:
        """What a preset keeps of the form. Raises BadConfig naming the field that cannot be used."""
        return {**self.edits.settings(), STEPS: checked(find(STEPS), self.steps)}

    def settings(self) -> dict[str, Any]:
        """As `Trainer.submit` takes them. Raises BadConfig naming the field that cannot be used."""
        found = self.edits.settings()
        if self.edits.preset in PRESETS:
            found["preset"] = self.edits.preset
        top = {"data.folder": self.folder.strip().strip("'\""), "data.trigger": self.trigger.strip()}
        top |= {
            "data.class_word": self.class_word.strip(),
            "output.name": self.name.strip() or usual_name(self.trigger, self.class_word),
            STEPS: self.steps,
        }
        known = {item.key: item for item in fields()}
        found |= {key: checked(known[key], value) for key, value in top.items()}
        if self.several:
            found[CONCEPT] = self.edits.tables()
        return found


def usual_name(trigger: str, class_word: str) -> str:
    """A file's name made of trigger and class."""
    return re.sub(r'[/\\:*?"<>|\s\x00-\x1f]+', "-", f"{trigger} {class_word}").strip("-. ") or "network"


def texts_of(job: JobConfig) -> dict[str, Text]:
    """Every setting of a job as its field holds it."""
    return {item.key: text_of(item, job.get(item.key)) for item in fields()}


def _merged(usual: Mapping[str, Text], given: Any) -> dict[str, Text]:
    """The usual texts with those given laid over, as far as they are texts or switches of known settings."""
    given = given if isinstance(given, dict) else {}
    return {key: given[key] if isinstance(given.get(key), (str, bool)) else text for key, text in usual.items()}
