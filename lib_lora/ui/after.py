"""What is done with a finished run: its card, comparisons, keeping the best, deleting the rest, training on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lib_lora.errors import BadConfig, LoraError
from lib_lora.train import choose, compare
from lib_lora.train.captions import fill
from lib_lora.train.config import JobConfig
from lib_lora.train.drawable import Drawable, products_of, prompted, require_said, why_not_drawn
from lib_lora.train.jobs import Run
from lib_lora.train.methods.base import CHECKPOINT
from lib_lora.ui import html, html_after, looking, training_on
from lib_lora.ui.comparing import BUSY, Comparer
from lib_lora.ui.html_after import FINAL, Result
from lib_lora.ui.live import Do, Panel, Request, act, text_of
from lib_lora.ui.running import Running
from lib_lora.ui.trainer import RunFacts, Trainer
from lib_lora.ui.training_on import more_steps, train_on


class After:
    """The regions' content, on plain values."""

    def __init__(self, trainer: Trainer, running: Running) -> None:
        self.trainer, self.running = trainer, running
        self.thumbs = running.thumbs
        self.comparer = Comparer(trainer)
        self.actions = {
            "compare": self.compare,
            "stop": lambda do: self.comparer.stop(),
            "keep": self.keep,
            "delete": self.delete,
            "weight": self.weight,
            "continue": self.go_on,
            "train_on": lambda do: train_on(self.trainer, do),
        }
        running.actions["preview"] = self.preview  # asked for by the picture that is shown large

    def answer(self, request: Request) -> dict[str, str]:
        """Every region as it is now, and what came of the button that was pressed."""
        told = {"after_told": self.act(request.do)} if request.do else {}
        try:
            run = self.chosen(request.view.get("run"))
            if run is None:
                return {"after": html_after.nothing(), "drawing": "", "grid": "", **told}
            found = self.result(run)
        except LoraError as error:
            return {"after": html.message(str(error), bad=True), "drawing": "", "grid": "", **told}
        return {
            "after": html_after.result(found, self.thumbs),
            "drawing": html_after.drawing(self.comparer.now, run.id),
            "grid": self.grid(run, request.view.get("grid")),
            **told,
        }

    def act(self, do: Do) -> str:
        """Do what a button asks for; what came of it as HTML."""
        return act(do, self.actions)

    def chosen(self, asked: Any) -> RunFacts | None:
        """The run that the browser looks at, else the job in hand if it has ended, else the latest that made a file."""
        runs = self.trainer.runs()
        status = self.trainer.status()
        under_way = status.id if status.state == "running" else ""
        made = [run for run in runs if (run.files or run.saved) and run.id != under_way]
        for id in (asked, status.id):
            found = next((run for run in made if run.id == id), None)
            if found is not None:
                return self.trainer.run(found.id)
        return self.trainer.run(made[0].id) if made else None

    def result(self, run: RunFacts) -> Result:
        """What there is to show of a run. Raises BadConfig if its folder cannot be read."""
        folder, job = opened(run)
        finished = [choose.network_file(folder, job, which) for which in range(len(products_of(job)))]
        file, used = finished[0], finished[prompted(job)]
        card = choose.read_card(used) if used is not None else {}
        weight = card.get(choose.WEIGHT)
        weight = float(weight) if isinstance(weight, (int, float)) and weight else 1.0
        tag = choose.tag_of(job) if used is not None else ""
        tag = tag.replace(":1>", f":{weight:g}>") if choose.is_network(job) else tag
        cover = next(filter(None, (choose.preview_of(one) for one in finished if one is not None)), None)
        words = card.get(choose.ACTIVATION) or fill(job.data.template, job.data)
        if tag and not tag.startswith("<"):
            words = ""  # an embedding is called by its own name
        output, names = job.output, {other.name for other in self.trainer.runs()}
        saved = choose.saved(folder, job, tuple(run.saved or ()))
        drawable = drawables(folder, job, [one.step for one in saved])
        called = next((tuple(one.words) for one in drawable.values() if one.network is None), ())
        return Result(
            id=run.id,
            name=run.name,
            file=file,
            tag=tag,
            words=str(words).strip(),
            weight=weight,
            preview=self.thumbs.url(cover) if cover else "",
            saved=saved,
            taken=choose.kept(folder, job),
            why_not_continue=choose.why_not_continue(job),
            why_not_compare=why_not_drawn(job),
            prompts=prompts_of(run, job, str(words) or tag),
            drawn=(output.sample_seed, output.sample_steps, output.sample_cfg),
            more=(choose.next_name(output.name, names), more_steps(run)),
            checkpoint=file.name if file is not None and products_of(job)[0].place == CHECKPOINT else "",
            files=[(self.trainer.for_the_page(str(one)), one.stat().st_size) for one in finished if one is not None],
            drawable=drawable,
            called=called,
            on=training_on.form(run),
        )

    def grid(self, run: RunFacts, asked: Any) -> str:
        """The comparison that the browser looks at, else the one in hand, else the latest; empty if there is none."""
        names = compare.grids(run.folder)
        now = self.comparer.now
        in_hand = now.grid if now.active and now.run == run.id else ""
        name = next((one for one in (in_hand, asked) if one in names), names[0] if names else "")
        if not name:
            return ""
        try:
            shown = compare.Grid.open(run.folder, name)
            kept = self.trainer.for_the_page(str(shown.sheet)) if shown.sheet.is_file() else ""
            return html_after.grid(run.id, shown, self.thumbs, names, kept)
        except LoraError as error:
            return html.message(str(error), bad=True)

    def compare(self, do: Do) -> str:
        """Draw a comparison as the form says."""
        run = self._run(do)
        found, fields = self.result(run), _fields(do)
        if found.why_not_compare:
            raise BadConfig(found.why_not_compare)
        status = self.trainer.status()
        if status.state == "running":
            raise BadConfig(f"{status.name!r} is being trained; pause it or wait, then compare")
        labels = fields.get("labels")
        files = compare.files_of(found.drawable, [str(one) for one in labels] if isinstance(labels, list) else [])
        prompts = compare.read_prompts(text_of(fields, "prompts"))
        if found.called:
            require_said(prompts, found.called)
        create = partial(
            compare.Grid.create,
            run.folder,
            labels=tuple(files),
            strengths=() if found.called else compare.read_strengths(text_of(fields, "strengths")),
            prompts=prompts,
            words=bool(found.called),
            seed=whole(fields, "seed", 0, 2**53),
            steps=whole(fields, "steps", 1, 150),
            cfg=float(whole(fields, "cfg", 1, 50, exact=False)),
            negative=opened(run)[1].output.sample_negative,
        )
        self.comparer.start(run.id, create, files)
        return ""  # what is shown of the drawing says it

    def keep(self, do: Do) -> str:
        """Make what was kept at a step the network."""
        run = self._run(do, changed=True)
        folder, job = opened(run)
        step = self._steps(run, [do.get("step")])[0]
        file = choose.keep(folder, job, step, run.step or job.training.steps)
        self.trainer.changed()
        return f"{file.name!r} is now the network of step {step}. The one before is kept among the saved networks."

    def delete(self, do: Do) -> str:
        """Delete what was kept at some steps, but never the chosen one."""
        run = self._run(do, changed=True)
        folder, job = opened(run)
        self._file(run)  # without one nothing is chosen, and these are not the others but all there is
        asked = do.get("steps")
        steps = self._steps(run, asked if isinstance(asked, list) else [])
        taken = choose.kept(folder, job)
        found = choose.saved(folder, job, [step for step in steps if step != taken])
        count = choose.delete([path for one in found for path in one.files], folder)
        return f"Deleted {count} files of {run.name!r}."

    def weight(self, do: Do) -> str:
        """Write the preferred weight into the card's facts."""
        run = self._run(do)
        value = choose.set_weight(self._file(run, prompted(opened(run)[1])), _fields(do).get("weight"))
        self.trainer.changed()
        return f"The card's preferred weight is now {value:g}."

    def preview(self, do: Do) -> str:
        """Make a sample or a compared picture the card's."""
        run = self._run(do)
        shown = looking.find(self.trainer, do)
        if shown is None:
            raise BadConfig("that picture is gone; load the page again")
        folder, job = opened(run)
        target = choose.set_preview(self._file(run), shown.path)
        beside = choose.network_file(folder, job, prompted(job))
        if beside is not None and beside.stem != target.stem:  # a checkpoint's LoRA
            choose.set_preview(beside, shown.path)
        self.trainer.changed()
        return f"{target.name!r} is now the card's picture."

    def go_on(self, do: Do) -> str:
        """Queue a run that begins with one of the networks."""
        run = self._run(do)
        job, fields = opened(run)[1], _fields(do)
        why = choose.why_not_continue(job)
        if why:
            raise BadConfig(why)
        file = self.result(run).labels().get(text_of(do, "label"))
        if file is None:
            raise BadConfig(f"{text_of(do, 'label')!r} is no network of this run any more; load the page again")
        settings = self.trainer.settings_of(run.id)
        more = choose.continue_settings(settings, file, text_of(fields, "more_name"), fields.get("more_steps"))
        self.trainer.submit(more)
        return f"Training {more['output.name']!r} goes on from {file.name!r}."

    def _run(self, do: Do, changed: bool = False) -> RunFacts:
        """The ended run that a button names.

        Raises BadConfig if it is trained at this moment, or compared while its files are to be `changed`.
        """
        run = self.trainer.run(text_of(do, "run"))
        status = self.trainer.status()
        if status.state == "running" and status.id == run.id:
            raise BadConfig(f"{run.name!r} is being trained; wait for it, pause it or cancel it")
        drawing = self.comparer.now
        if changed and drawing.active and drawing.run == run.id:
            raise BadConfig(BUSY)
        return run

    def _file(self, run: RunFacts, which: int = 0) -> Any:
        file = choose.network_file(*opened(run), which)
        if file is None:
            raise BadConfig(f"{run.name!r} has no finished file yet; keep one of what it saved")
        return file

    def _steps(self, run: RunFacts, asked: Sequence[Any]) -> list[int]:
        """Steps as the browser names them, of those the run has. Raises BadConfig for any other."""
        known = run.saved or {}
        for step in asked:
            if type(step) is not int or step not in known:
                raise BadConfig(f"step {step!r} is not among the saved networks any more; load the page again")
        return list(asked)


def add(trainer: Trainer, running: Running) -> None:
    """The part of the page, into the current gradio context."""
    import gradio as gr

    after = After(trainer, running)
    regions = {"after_told": "", "after": html_after.nothing(), "drawing": "", "grid": ""}
    with gr.Column(elem_classes=["lorakit"], elem_id="lorakit_results"):
        Panel("after", regions).add(after.answer)


def opened(run: RunFacts) -> tuple[Run, JobConfig]:
    """A run's folder and job. Raises BadConfig if they cannot be read."""
    folder = Run.open(run.folder)
    return folder, folder.job()


def drawables(folder: Run, job: JobConfig, steps: Sequence[int]) -> dict[str, Drawable]:
    """What can be compared by its label, in order: what was saved on the way, then the finished files if others."""
    taken = choose.kept(folder, job)
    places: dict[str, int | None] = {f"step {step}": step for step in steps}
    if taken not in steps:
        places[FINAL] = None
    found = {label: choose.drawn_at(folder, job, step) for label, step in places.items()}
    return {label: one for label, one in found.items() if one is not None}


def prompts_of(run: RunFacts, job: JobConfig, words: str) -> list[str]:
    """What to compare with: the job's sample prompts, else the samples' own, else what calls the concept."""
    given = job.output.sample_prompts or tuple(filter(None, (concept.sample_prompt for concept in job.concepts)))
    drawn = dict.fromkeys(sample.prompt for sample in run.samples)
    return list(given or drawn or [words.strip()])


def whole(fields: Mapping[str, Any], name: str, low: int, high: int, exact: bool = True) -> float:
    """A number of the form. Raises BadConfig naming it; `exact`: a whole one."""
    try:
        value = float(text_of(fields, name))
    except ValueError:
        value = -1.0
    if not low <= value <= high or (exact and value != int(value)):
        raise BadConfig(f"{name!r} takes a number from {low} to {high}; {text_of(fields, name) or ' '!r} is none")
    return int(value) if exact else value


def _fields(do: Do) -> Mapping[str, Any]:
    found = do.get("fields")
    return found if isinstance(found, dict) else {}


__all__ = ["FINAL", "After", "add"]
