"""The HTML of every part of the page in every state it can be in, with texts of a user that hold visible.MARK."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora.train import drawable, preflight
from lib_lora.train.absorb import Absorbed
from lib_lora.train.caption_store import Caption
from lib_lora.train.choose import why_not_continue
from lib_lora.train.compare import Grid
from lib_lora.train.config import make_job
from lib_lora.train.differences import Difference
from lib_lora.train.effects import without_effect
from lib_lora.train.estimate import Visits
from lib_lora.train.looking import Header
from lib_lora.train.pace import Pace
from lib_lora.train.picture_set import Saved
from lib_lora.train.rare_words import check_trigger
from lib_lora.train.sections import METHODS, TYPES
from lib_lora.train.survey import ADVICE, PROBLEMS, Part, Picture, Survey
from lib_lora.train.wizard import NAMES, Offer
from lib_lora.ui import (
    after,
    caption_page,
    form_lines,
    html,
    html_after,
    html_captions,
    html_pictures,
    html_plot,
    html_running,
    html_runs,
    html_samples,
    looking,
    picture_page,
    spoken,
    standing,
    training_on,
)
from lib_lora.ui.captioners import Progress
from lib_lora.ui.comparing import Drawing
from lib_lora.ui.live import Request
from lib_lora.ui.thumbs import Thumbs
from lib_lora.ui.trainer import BaseFacts, RunFacts, TrainStatus
from tests.ui import fake_trainer
from tests.ui.every_error import ERRORS
from tests.ui.real_runs import make_run, trainer_with
from tests.ui.visible import MARK

NAME = f"rex{MARK}"
PATH = Path(f"/{MARK}/{NAME}.png")
PROMPT = f"photo{MARK} of{MARK} rex{MARK}"
GB = 1 << 30


def running(folder: Path) -> Iterator[str]:
    """The job in hand: each state with all its figures, preparing, the queue, the log, a picture shown large."""
    busy = replace(fake_trainer.running(120, 600, NAME), waiting=("a", "b"))
    for state in html_running.WORDS:
        for doing in ("", standing.HALTED):
            yield html_running.progress(replace(busy, state=state, doing=doing))
        yield html_running.progress(TrainStatus(state))
    for doing in (*standing.ASKED.values(), "training", "waiting for the model", "making pictures ready: 3 of 12"):
        yield html_running.progress(replace(busy, step=0, doing=doing))
    runs = {id: fake_trainer.finished_run(folder, id, name=NAME, method=name) for id, name in zip(METHODS, METHODS)}
    yield html_running.queue(list(runs), runs)
    yield html_running.log([f"12:30:05 {line}" for line in told_of_events()])
    yield html_plot.plots(busy.points) + html_plot.plots(())
    run = make_run(folder, NAME)
    samples = [replace(one, prompt=PROMPT) for one in run.samples * 20]
    yield html_samples.strips(samples, Thumbs(), run.id)
    for shown in (
        looking.Shown(samples[0].path, "step 100", PROMPT),
        looking.Shown(samples[0].path, "final, strength 1", PROMPT),
    ):
        yield looking.html(shown, {}, Thumbs())


def told_of_events() -> Iterator[str]:
    """The log's lines of each kind of event."""
    from lib_lora.train import story

    for event in (
        {"type": "queued"},
        {"type": "started", "step": 0, "steps": 400, "pictures": 12, "class_pictures": 5, "parameters": 1000},
        {"type": "started", "step": 10, "steps": 400},
        {"type": "preparing", "done": 12, "total": 12},
        {"type": "saved", "step": 10, "path": f"/{MARK}/{NAME}.safetensors"},
        {"type": "sample", "step": 10},
        {"type": "finished", "step": 400},
    ):
        yield from story.lines_of(event)


def results(folder: Path) -> Iterator[str]:
    """A run that ended: with and without its file, each kind of it, comparisons under way and done."""
    for place, name in enumerate(METHODS):
        root = folder / f"{MARK}{place}"
        root.mkdir(parents=True)
        more = {"method__as_lora": 8} if name == "dreambooth" else {}
        run = make_run(root, NAME, method__name=name, output__sample_prompts=(PROMPT,), data__trigger=MARK, **more)
        trainer = trainer_with(root, run)
        part = after.After(trainer, _Running(trainer))
        yield part.answer(Request())["after"]
        result = part.result(run)
        yield html_after.result(replace(result, file=None, taken=100, why_not_continue=""), Thumbs())
        yield html_after.result(replace(result, drawable={}), Thumbs())
        yield part.act({"do": "compare", "run": run.id, "fields": {"labels": ["final"], "prompts": PROMPT}})
        yield why_not_continue(run_job(run))
    for words in (False, True):
        facts: dict[str, Any] = {"labels": ("step 100", "final"), "prompts": (PROMPT,), "words": words}
        grid = Grid.create(folder, strengths=(0.0, 1.0), **facts)
        for cell in grid.cells():
            grid.add(cell, Image.new("RGB", (64, 64)))
        yield html_after.grid("a", grid, Thumbs(), ("001", "002"), f"/{MARK}") + html_after.nothing()
        yield from (
            looking.html(looking.Shown(Path(), grid.title(cell), PROMPT), {}, Thumbs()) for cell in grid.cells()
        )
    yield from (spoken.spoken(why) for why in drawable.WHY_NOT.values())
    yield html_after.drawing(Drawing("a", "001", 1, 9, True), "a")
    ready = f"The comparison is ready; it is also kept as '{MARK}' in the run's folder."
    for message in (ready, "Stopped after 3 of 9 pictures.", "Stopping after this picture.", "Nothing is being drawn."):
        yield html_after.drawing(Drawing("a", message=message), "a")
    for text in (
        f"'{NAME}' is now the network of step 100. The one before is kept among the saved networks.",
        f"Deleted 3 files of '{NAME}'.",
        "The card's preferred weight is now 0.8.",
        f"'{NAME}' is now the card's picture.",
        f"Training '{NAME}' goes on from '{NAME}'.",
        "Pausing after this step.",
        f"Going on with '{NAME}'.",
        f"'{NAME}' goes on when its turn comes.",
        "Stopping after this step.",
        "Taken out of the queue.",
        "Moved.",
        "Nothing is being trained.",
        "The network is kept after this step.",
        f"Deleted the run '{NAME}'.",
        f"Training '{NAME}'.",
        f"'{NAME}' waits in the queue, as number 2.",
        f"Preset '{NAME}' is set.",
        f"Preset '{NAME}' is set. 3 settings that you had changed were replaced.",
        "The form is set for little memory.",
        "The form is as at the beginning.",
        f"There is a preset '{NAME}' already. Replace it?",
        f"Delete preset '{NAME}'?",
        f"Preset '{NAME}' is saved.",
        f"Preset '{NAME}' is deleted.",
        "The job is in the form: 12 settings.",
    ):
        yield html.message(text)


def runs(folder: Path) -> Iterator[str]:
    """The list of runs, and one in detail, in each state."""
    states = ("idle", *html_running.WORDS)
    found = [
        fake_trainer.finished_run(folder, f"{NAME}{at}", name=NAME, state=state, method=METHODS[at % len(METHODS)])
        for at, state in enumerate(states * 4)
    ]
    yield html_runs.table((), 0, "") + html_runs.table(found, 0, found[1].id) + html_runs.table(found, 1, "")
    settings = (Difference("training.steps", 5, 1000, "Optimizer steps"),)
    for run in (replace(one, can_resume=True) for one in found[: len(states)]):
        more = {"on": training_on.form(run), "files": (str(PATH),), "folder": str(PATH.parent)}
        yield html_runs.detail(html_runs.Detail(replace(run, message=NAME), settings, "a", "b", NAME, **more), Thumbs())
    yield spoken.spoken("the program ended while this was trained; resume to go on")


def pictures() -> Iterator[str]:
    """A folder of pictures with every problem and advice; uploads refused; what is told."""
    every = [
        Picture(PATH, Header((640, 480)), 2, caption, kept, (problem,))
        for problem, (caption, kept) in product(PROBLEMS, (("", ""), (NAME, "txt")))
    ]
    parts = (Part(PATH.parent, 10, NAME, 3), Part(PATH.parent, 1, NAME, 3))
    group = (tuple(Path(f"/{MARK}{n}.png") for n in range(9)),)
    found = Survey(PATH.parent, tuple(every), parts, group, tuple(ADVICE), 99, 5)
    yield html_pictures.summary(found) + html_pictures.grid(every, PATH.parent)
    yield picture_page.INVITATION
    reasons = (
        "more than 200 files at once",
        "larger than 64 MiB",
        "the set has 2000 files already",
        "the disk is full",
        "the set would be larger than 2 GiB",
        "more than 120 million pixels",
        "not a picture, or broken",
        "not sent by the browser",
        "no picture of this name",
        "its picture has a caption already",
        "a caption larger than 64 KiB",
        "not in UTF-8; save the text anew in that encoding",
        "not a text",
    )
    yield picture_page._refused(Saved(PATH, [], [(NAME, reason) for reason in reasons]))
    for words in (
        "Put aside:",
        "Brought back:",
        "Nothing is left to bring back.",
        "Pictures saved:",
        "Captions saved:",
    ):
        yield picture_page._said(words, NAME)
    yield f"{html_pictures.word('Page')} {html_pictures.number(1)}"


def captions() -> Iterator[str]:
    """Captions: the grid, tags, what to absorb, bulk edits looked at, captioners at work."""
    every = [Caption(PATH, text, kept) for text, kept in ((NAME, "txt"), (NAME, "table"), ("", ""))]
    yield html_captions.grid([(one, None) for one in every], PATH.parent) + html_captions.counts(every)
    tags = [(f"{MARK}{n}", n) for n in range(200)]
    yield html_captions.tags(tags, tags[0][0])
    yield html_captions.proposal([Absorbed(NAME, 3, 0.9, own) for own in (True, False)]) + html_captions.proposal(())
    yield html_captions.preview([(every[0], NAME)]) + html_captions.preview(())
    for state in ("running", "finished", "stopped", "failed"):
        yield html_captions.progress(Progress(state, NAME, 3, 9, f"left out: '{NAME}'" if state == "finished" else ""))
    fetched = ("BLIP and CLIP, about 1.8 GB", "CLIP's lists of styles, less than 1 MB", "DeepDanbooru, about 0.6 GB",
               "perhaps its weights, 0.4 to 1.3 GB")  # fmt: skip
    yield html_captions.options({NAME + str(at): f"downloads {one} at its first use" for at, one in enumerate(fetched)})
    yield caption_page.saved_message(caption_page.Edits([], 3, [NAME], [NAME]))
    for words in ("Files made:", "Captions changed:", "Taken back, files:", "Changed since and left alone:"):
        yield caption_page.said(words, 3)
    for operation in ("Edited by hand", "Captions of the table into files"):
        yield spoken.spoken(operation)


def form() -> Iterator[str]:
    """The form's lines: base, trigger, name, costs, warnings, presets that are not offered."""
    for version in NAMES:
        yield form_lines.base_line(BaseFacts(NAME, version, 512))
    yield form_lines.base_line(
        BaseFacts(NAME, "sd1", 512, "it is an inpainting model; choose one that draws from noise")
    )
    yield from trigger_lines()
    yield form_lines.name_line(NAME, NAME, "", "") + form_lines.name_line(NAME, "", f"{NAME}.safetensors", NAME)
    visits = (Visits(600, 2, 1200, 12, 100.0, 100.0), Visits(600, 2, 1200, 0, 0.0, 0.0))
    paces = (None, Pace(0.5), Pace(0.5, NAME), Pace(5.0, NAME, True))
    for visit, pace, total in product(visits, paces, (None, 8 * GB)):
        yield form_lines.estimate(form_lines.Costs(pace, visit, 5 * GB, total, 20 << 20), (), ("training.batch_size",))
    yield form_lines.estimate(form_lines.Costs(None, visits[0], None, None, None), list(warnings()), ())
    refused = ("needs about 8.2 GB, this GPU has 6 GB", "for SDXL, and the base is SD 1")
    yield form_lines.offers_line([Offer(NAME, text) for text in refused])
    large = "This does not fit: it needs about 8.2 GB, this GPU has 6 GB."
    yield form_lines.estimate(form_lines.Costs(None, visits[1], None, None, None), [large], ())


def trigger_lines() -> Iterator[str]:
    """Every verdict on a trigger, and every note."""
    from lib_lora.models.vocabulary import packaged_vocabulary

    words = packaged_vocabulary()
    for trigger, taken in (("", ()), ("xulek", ()), ("dog", ()), ("red dog", ()), ("sks", ()), ("shs", ()),
                           ("rexdog", ()), ("xulek", ("xulek",)), ("a:b", ()), ("xqzvkwpjxqzvkwpj", ())):  # fmt: skip
        yield form_lines.trigger_line(check_trigger(trigger, words, taken))
    yield form_lines.trigger_line(check_trigger("xulek", None))


def warnings() -> Iterator[str]:
    """Every warning before a job starts."""
    low = {"training.steps": 300}
    for changes, pictures, resolution in (
        ({"optimizer.name": "prodigy"}, 0, 0), ({"optimizer.lr": 0.01}, 0, 0), ({"optimizer.lr": 1e-7}, 0, 0),
        ({"network.train_text_encoder": True, "optimizer.te_lr": 1e-3}, 0, 0), (low, 100, 0), ({}, 2, 0),
        ({"training.steps": 90000}, 10, 0), ({"data.resolution": 1024}, 0, 512), ({"data.resolution": 256}, 0, 768),
        ({"prior.weight": 1.0}, 0, 0), ({"training.zero_terminal_snr": True, "base.prediction": "epsilon"}, 0, 0),
        ({"output.save_every": 9000}, 0, 0),
    ):  # fmt: skip
        yield from preflight.warnings(make_job(changes), pictures, resolution)


def reasons() -> Iterator[str]:
    """Why settings have no effect, of every kind of training and type of network, on every version."""
    for method, kind, version in product(METHODS, TYPES, NAMES):
        for more in ({}, {"training.epochs": 3}):
            job = make_job({"method.name": method, "network.type": kind, **more})
            yield from without_effect(job, version).values()


def every(folder: Path) -> Iterator[str]:
    """All of it."""
    for part in (running(folder / "a"), results(folder / "b"), runs(folder / "c"), pictures(), captions(), form()):
        yield from part
    yield from (html.message(text, bad=True) for text in ERRORS)
    for why in dict.fromkeys(reasons()):
        yield spoken.spoken(why)


def run_job(run: RunFacts) -> Any:
    """The job a run was made with."""
    from lib_lora.train.jobs import Run

    return Run.open(run.folder).job()


class _Running:
    """What After needs of the running part."""

    def __init__(self, trainer: Any) -> None:
        self.thumbs, self.actions = Thumbs(), dict[str, Any]()
