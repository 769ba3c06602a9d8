"""What the form says of itself while it is filled in: base, trigger, name, costs, warnings, settings without effect."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora.errors import LoraError
from lib_lora.models.vocabulary import packaged_vocabulary
from lib_lora.train import preflight
from lib_lora.train.config import JobConfig
from lib_lora.train.effects import without_effect
from lib_lora.train.estimate import visits_of
from lib_lora.train.methods.registry import method_of
from lib_lora.train.pace import pace_of
from lib_lora.train.rare_words import Tokenizer, check_trigger, suggest
from lib_lora.train.wizard import Machine, offers, too_large
from lib_lora.ui import form_lines as lines
from lib_lora.ui.form_name import Names, files_in
from lib_lora.ui.form_page import FormPage, field_of
from lib_lora.ui.form_state import Reading, usual_name
from lib_lora.ui.spoken import pieces
from lib_lora.ui.trainer import BaseFacts

log = logging.getLogger(__name__)
REMEMBERED = "form.json"


@dataclass(frozen=True)
class Looked:
    """What a look at the form shows. `name` is "" where the field stays as it is; `presets` are those offered.

    `restored`: see `Edits`; `moved` are all values, where the base is another one now.
    """

    name: str
    base: str
    trigger: str
    name_line: str
    estimate: str
    hints: str
    presets: tuple[str, ...]
    refused: str
    restored: bool = False
    moved: tuple[Any, ...] = ()


class Looker:
    """Looks at the form's values."""

    def __init__(self, page: FormPage) -> None:
        self.page = page
        self._tokenizer: Tokenizer | None = None
        self._tried = False

    def look(self, values: Sequence[Any], proposed: str) -> Looked:
        """Everything there is to say. `proposed` is the name that was last proposed, which may be replaced."""
        page, facts = self.page, self.page.trainer.base()
        moved = self._rebased(values)
        values = moved or values
        try:
            form, machine, folder_job = page.reading(values), page.machine(), page.trainer.job({})
        except LoraError as error:
            log.warning("nothing can be said of the form: %s", error)
            return Looked("", lines.base_line(facts), "", "", lines.estimate_refused(str(error)), "{}", (), "")
        networks = folder_job.output.network_folder
        name, name_line = self._name(form, self._names(form, folder_job), proposed)
        trigger = check_trigger(form.trigger, self.tokenizer(), self._taken(networks))
        estimate, hints = self._estimate(form, facts, machine, name or form.name)
        all_offers = offers(machine, page.estimator, _host_values(folder_job, facts))
        offered = (*(one.name for one in all_offers if not one.refused), *page.store.names())
        return Looked(
            name,
            lines.base_line(facts),
            lines.trigger_line(trigger),
            name_line,
            estimate,
            json.dumps({**hints, "several": form.several}),
            offered,
            lines.offers_line([one for one in all_offers if one.refused]),
            form.edits.restored,
            tuple(moved or ()),
        )

    def _rebased(self, values: Sequence[Any]) -> list[Any] | None:
        try:
            return self.page.rebased(values)
        except LoraError as error:  # of a preset that was deleted, say
            log.info("the form stays as it is: %s", error)
            return None

    def tokenizer(self) -> Tokenizer | None:
        """CLIP's words, read when first asked for; None where no package brings them."""
        if not self._tried:
            self._tried = True
            try:
                self._tokenizer = packaged_vocabulary()
            except LoraError as error:
                log.info("triggers are not checked: %s", error)
        return self._tokenizer

    def suggestion(self, current: str) -> str:
        """A rare word, another one than the present."""
        networks = self.page.trainer.job({}).output.network_folder
        found = suggest(len(current) + 8, self.tokenizer(), {*self._taken(networks)})
        if current in found:
            return found[(found.index(current) + 1) % len(found)]
        return found[0] if found else current

    def _name(self, form: Reading, names: Names, proposed: str) -> tuple[str, str]:
        """A name to put into the field, "" to leave it, and the line under it."""
        wished = form.name.strip()
        own = not wished or wished == proposed
        if own:
            wished = names.free(usual_name(form.trigger, form.class_word))
        taken = names.taken(wished)
        free = names.free(wished) if taken else wished
        line = lines.name_line(names.tags(wished), names.checkpoint(wished), taken, free if free != wished else "")
        return (wished if own and wished != form.name else ""), line

    def _names(self, form: Reading, usual: JobConfig) -> Names:
        """By the method that is chosen; by the usual one while the form has a value that cannot be used."""
        try:
            return Names(self.page.trainer.job(form.settings()))
        except LoraError:  # the estimate says which
            return Names(usual)

    def _taken(self, networks: str) -> list[str]:
        return [path.stem for path in files_in(networks)]

    def _estimate(self, form: Reading, facts: BaseFacts, machine: Machine, name: str) -> tuple[str, dict[str, Any]]:
        page = self.page
        try:
            form.name = name or form.name
            job = page.trainer.job(form.settings())
            costs, pictures = self._costs(job, facts, machine)
        except LoraError as error:
            key = field_of(str(error))
            return lines.estimate_refused(str(error)), {"bad": key}
        notes = preflight.warnings(job, pictures, facts.resolution)
        large = too_large(job, machine, page.estimator)
        if large:
            notes = [f"This does not fit: it {large}.", *notes]
        _, _, saved = page.begun(form)
        muted = {key: pieces(why) for key, why in without_effect(job, facts.version).items()}
        return lines.estimate(costs, notes, saved), {"muted": muted, "pictures": pictures}

    def _costs(self, job: JobConfig, facts: BaseFacts, machine: Machine) -> tuple[lines.Costs, int]:
        page = self.page
        pictures = self._pictures(job)
        visits = visits_of(job, pictures)
        size = page.estimator.size(job, facts.version)
        share = page.estimator.share(facts.version)
        pace = pace_of(job, machine, share, self._runs(job))
        memory = page.estimator.memory(job, facts.version, half=machine.memory is not None)
        return lines.Costs(pace, visits, memory, machine.memory, size.file if size else None), pictures

    def _runs(self, job: JobConfig) -> Path:
        """The folder of earlier runs, the host's own where this one may not be looked into."""
        try:
            return self.page.trainer.allowed(job.output.folder, "output.folder")
        except LoraError:
            return Path(self.page.trainer.job({}).output.folder).expanduser()

    def _pictures(self, job: JobConfig) -> int:
        if not method_of(job.method.name).pictures:
            return 0
        try:
            for folder in {job.data.folder, *(concept.folder for concept in job.concepts)} - {""}:
                self.page.trainer.allowed(folder, "data.folder")
        except LoraError:  # the pictures step says so
            return 0
        return preflight.pictures_of(job)


def short(text: str) -> str:
    """A text by which to see whether another one is the same."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:16]


def _host_values(job: JobConfig, facts: BaseFacts) -> Mapping[str, Any]:
    """What this host sets in every job, as far as it matters to what a preset needs."""
    return {"data.resolution": job.data.resolution or facts.resolution}
