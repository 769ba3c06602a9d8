"""What a run's folder tells: at once for any length, whatever is in it, and only for runs of this folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig
from lib_lora.train.config import JobConfig, dump_job, make_job
from lib_lora.train.history import History
from lib_lora.train.jobs import EVENTS, JOB, Run, stamp
from lib_lora.train.story import LINES, POINTS, TAIL, Curve, Story, events_after

Make = Callable[..., JobConfig]
LONG = 100_000


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "runs")


def write(run: Run, *events: dict[str, Any]) -> None:
    for event in events:
        run.append(event)


def steps(first: int, last: int, total: int = 9) -> list[dict[str, Any]]:
    figures = {"steps": total, "epoch": 1, "lr": 1e-3, "eta_s": 5.0, "step_s": 0.1}
    return [stamp("step", step=step, loss=1.0 / step, **figures) for step in range(first, last + 1)]


def long_run(make: Make, length: int = LONG) -> Run:
    run = Run.create(make(output__name="long", training__steps=length))
    figures = {"steps": length, "epoch": 3, "lr": 1e-4, "eta_s": 7.0, "step_s": 0.1}
    events = [stamp("started", step=0, steps=length, folder=str(run.folder))]
    events += [stamp("step", step=step, loss=1.0 + step % 2, **figures) for step in range(1, length + 1)]
    (run.folder / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events))
    return run


def test_facts_follow_the_events(make: Make, history: History, tmp_path: Path) -> None:
    run = Run.create(make(output__name="rex"))
    assert history.facts("rex").state == "interrupted"
    write(run, stamp("queued"))
    queued = history.run("rex")
    assert (queued.state, queued.step, queued.steps, queued.name, queued.method) == ("queued", 0, 3, "rex", "network")
    with run.locked():
        write(run, stamp("preparing", folder="x", done=1, total=2))
        assert history.look("rex")[1].last["done"] == 1
        write(run, stamp("started", step=0, steps=9), *steps(1, 3))
        write(run, stamp("sample", step=3, prompt="a dog", picture=str(run.samples / "000003-0.png")))
        facts = history.run("rex")
        assert (facts.state, facts.step, facts.steps, facts.loss) == ("running", 3, 9, 1.0 / 3)
        assert [point.step for point in facts.points] == [1, 2, 3] and facts.samples[0].prompt == "a dog"
    assert history.run("rex").state == "interrupted"
    write(run, stamp("paused", step=3, steps=9, message="paused at step 3 of 9"))
    assert (history.facts("rex").state, history.facts("rex").message) == ("paused", "paused at step 3 of 9")
    for name in ("rex-000002", "rex-000100", "other-000001", "rex-000003x"):
        (run.checkpoints / f"{name}.safetensors").write_bytes(b"")
    run.state.write_bytes(b"")
    write(run, stamp("started", step=2, steps=9), stamp("finished", step=9, steps=9, file="a", files=["a", "b"]))
    done = history.run("rex")
    assert (done.state, done.files, done.can_resume) == ("finished", (Path("a"), Path("b")), True)
    assert done.saved == {step: run.checkpoints / f"rex-{step:06d}.safetensors" for step in (2, 100)}
    assert list(done.saved) == [2, 100] and done.message == ""
    assert history.facts("rex") == history.runs()[0]


def test_runs_are_listed_newest_first_and_odd_folders_left_out(make: Make, history: History, tmp_path: Path) -> None:
    assert history.runs() == [] and history.ids() == []
    for age, name in enumerate(("old", "middle", "new")):
        run = Run.create(make(output__name=name))
        write(run, {**stamp("queued"), "time": 1000.0 + age})
        os.utime(run.folder / JOB, (5000 - age, 5000 - age))
    (history.folder / "empty").mkdir()
    (history.folder / "file").write_text("")
    (history.folder / ".hidden").mkdir()
    (history.folder / ".hidden" / JOB).write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / JOB).write_text("")
    (history.folder / "link").symlink_to(tmp_path / "elsewhere")
    assert history.ids() == ["new", "middle", "old"]
    assert [run.made for run in history.runs()] == [1002.0, 1001.0, 1000.0]
    (history.folder / "old" / JOB).write_text("[network]\nrank = 'of another version'\n")
    odd = history.runs()[-1]
    assert (odd.name, odd.method, odd.saved) == ("old", "", {}) and "job.toml cannot be read" in odd.message


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../rex", "/etc", "rex/..", "a\\b", "C:x", "a\0", "link", "x" * 300, "no"]
)
def test_ids_are_names_of_runs_in_this_folder_only(make: Make, history: History, tmp_path: Path, id: str) -> None:
    outside = Run.create(make(output__folder=str(tmp_path), output__name="rex"))
    Run.create(make(output__name="own"))
    (history.folder / "link").symlink_to(outside.folder)
    for ask in (history.open, history.run, history.facts, history.settings_of, history.state_of, history.forget):
        with pytest.raises(BadConfig, match="there is no run"):
            ask(id)
    assert (outside.folder / JOB).is_file() and (history.folder / "own" / JOB).is_file()


def test_settings_make_the_same_job_again(make: Make, history: History) -> None:
    job = make(output__sample_prompts=("a", "b"), training__epochs=3)
    plain = Run.create(job)
    assert make_job(history.settings_of(plain.folder.name)) == job == history.job(plain.folder.name)
    several = make_job({**history.settings_of(plain.folder.name), "concept": [{"trigger": "x"}, {"folder": "f"}]})
    run = Run.create(several)
    assert make_job(history.settings_of(run.folder.name)) == several
    assert json.loads(json.dumps(history.settings_of(run.folder.name))) == history.settings_of(run.folder.name)
    (run.folder / JOB).write_text(dump_job(make(training__seed=123456)))
    assert history.job(run.folder.name).training.seed == 123456, "what was read before is not given for long"


def test_forgetting_deletes_one_run_and_follows_no_link(make: Make, history: History, tmp_path: Path) -> None:
    keep, gone = (Run.create(make(output__name=name)) for name in ("keep", "gone"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"mine")
    (gone.folder / "link").symlink_to(tmp_path / "pictures")
    write(gone, stamp("queued"), *steps(1, 2))
    assert history.run("gone").step == 2
    with gone.locked(), pytest.raises(BadConfig, match="being trained"):
        history.forget("gone")
    history.forget("gone")
    assert [path.name for path in history.folder.iterdir()] == ["keep"] and (keep.folder / JOB).is_file()
    assert (tmp_path / "pictures" / "a.png").read_bytes() == b"mine"
    write(Run.create(make(output__name="gone")), stamp("queued"))
    assert history.run("gone").step == 0, "another one of that name"


def test_forgetting_leaves_nothing_behind_whatever_the_name(
    make: Make, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "\u72d7" * 66  # 198 bytes
    for name in ("first", long):
        Run.create(make(output__name=name))
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)
        history.forget("first")
    assert history.ids() == [long] and len(os.listdir(history.folder)) == 2
    history.forget(long)
    assert os.listdir(history.folder) == []


@pytest.mark.parametrize("id", ["\u72d7" * 200, "\udc80"])
def test_ids_that_no_file_system_takes_are_of_no_run(history: History, id: str) -> None:
    history.folder.mkdir()
    with pytest.raises(BadConfig, match="there is no run"):
        history.open(id)


def test_a_repeated_part_is_drawn_once(make: Make, history: History) -> None:
    """Killed at step 5 with the state of step 2: steps 3 to 5 come again."""
    run = Run.create(make(output__name="rex"))
    write(run, stamp("started", step=0, steps=9), *steps(1, 5))
    write(run, stamp("sample", step=4, prompt="old", picture="s/000004-0.png"))
    write(run, stamp("started", step=2, steps=9), *steps(3, 7))
    write(run, stamp("sample", step=4, prompt="new", picture="s/000004-0.png"))
    facts = history.run("rex")
    assert [point.step for point in facts.points] == list(range(1, 8))
    assert [(sample.step, sample.prompt) for sample in facts.samples] == [(4, "new")]


def test_lines_cut_off_or_damaged_are_read_when_they_are_whole(make: Make, history: History) -> None:
    run = Run.create(make(output__name="rex"))
    write(run, stamp("started", step=0, steps=9), *steps(1, 2))
    whole = json.dumps(steps(3, 3)[0]).encode() + b"\n"
    for piece in (whole[:10], whole[10:-1]):
        with (run.folder / EVENTS).open("ab") as file:
            file.write(piece)
        assert history.run("rex").step == 2 == history.facts("rex").step
    with (run.folder / EVENTS).open("ab") as file:
        file.write(b'\n{"broken\n[1]\n\xff\xfe\n')
    assert history.run("rex").step == 3
    assert Story(run).read().count == 4


def test_long_histories_do_not_slow_the_page(make: Make, history: History) -> None:
    """Listing reads both ends of a long file, and a poll what is new: the rest could as well be anything."""
    run = long_run(make)
    path = run.folder / EVENTS
    size = path.stat().st_size
    seconds = [timed(history.runs), timed(lambda: history.run("long"))]
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"x" * (size - TAIL - 2000))
    write(run, stamp("step", step=LONG + 1, steps=2 * LONG, loss=0.5, lr=1e-4))
    listed, facts = history.runs()[0], history.run("long")
    assert listed.step == facts.step == LONG + 1 and History(history.folder).runs() == [listed]
    assert len(facts.points) <= POINTS
    assert [(point.step, point.loss) for point in (facts.points[0], *facts.points[-2:])] == [
        (1, 2.0), (LONG - LONG % 256 + 1, 2.0), (LONG + 1, 0.5),
    ]  # fmt: skip
    for step in range(LONG + 2, LONG + 12):
        write(run, stamp("step", step=step, steps=2 * LONG, loss=0.5, lr=1e-4))
        seconds.append(timed(lambda: (history.run("long"), history.runs())))
    print(f"{LONG} events: listed {seconds[0]:.4f} s, first read {seconds[1]:.2f} s, poll {min(seconds[2:]):.4f} s")


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def test_curves_stay_short_and_keep_both_ends() -> None:
    for length in (0, 1, 2, POINTS - 1, POINTS, POINTS + 1, 3 * POINTS, 12345):
        curve = Curve()
        for step in range(1, length + 1):
            curve.add(step, float(step), 1e-4)
        found = [point.step for point in curve.points()]
        assert len(found) <= POINTS and found == sorted(set(found))
        assert (found[:1], found[-1:]) == (([1], [length]) if length else ([], []))
        gaps = {b - a for a, b in pairwise(found[:-1])}
        assert len(gaps) <= 1, "as far apart everywhere"


def test_the_running_mean_is_one() -> None:
    curve, losses = Curve(), [2.0, 4.0, 0.0, 8.0]
    for step, loss in enumerate(losses, 1):
        curve.add(step, loss, 1e-4)
    weights = [0.98 ** (3 - index) for index in range(4)]
    expected = sum(w * loss for w, loss in zip(weights, losses)) / sum(weights)
    assert curve.points()[-1].smooth == pytest.approx(expected, rel=1e-12)
    assert curve.points()[0].smooth == 2.0
    curve.back_to(2)
    curve.add(3, 0.0, 1e-4)
    assert curve.points()[-1].smooth == pytest.approx((0.98**2 * 2 + 0.98 * 4) / (0.98**2 + 0.98 + 1), rel=1e-12)


def test_the_log_is_for_people_and_not_endless(make: Make) -> None:
    run = Run.create(make())
    write(
        run, stamp("queued"), stamp("preparing", done=1, total=2), stamp("preparing", done=2, total=2),
        stamp("note", message="no mask for a.png"),
        stamp("started", step=0, steps=9, pictures=2, parameters=100, skipped=["b.png is broken"], notes=["small"]),
        *steps(1, 2), stamp("saved", step=2, path="/x/toy-000002.safetensors"),
        stamp("sample", step=2, prompt="", picture="p"),
        stamp("failed", step=2, steps=9, message="out of memory"),
    )  # fmt: skip
    lines = [line.partition(" ")[2] for line in Story(run).read().log]
    assert lines == [
        "In the queue.", "2 pictures are ready.", "no mask for a.png", "Training begins: 9 steps.",
        "2 pictures, 100 parameters trained.", "Left out: b.png is broken", "small",
        "Step 2: toy-000002.safetensors is written.", "Step 2: a sample picture is drawn.", "out of memory",
    ]  # fmt: skip
    write(run, *(stamp("note", message=str(n)) for n in range(LINES + 50)))
    log = Story(run).read().log
    assert len(log) == LINES and log[-1].endswith(str(LINES + 49))


def test_events_are_handed_out_in_pieces(make: Make) -> None:
    run = Run.create(make())
    write(run, *steps(1, 50))
    found, place = [], 0
    while True:
        events, following = events_after(run, place, 500)
        assert following > place or not events
        if not events:
            break
        found, place = found + events, following
    assert found == run.events() and place == (run.folder / EVENTS).stat().st_size
    assert len(events_after(run, 0, 10)[0]) == 1, "one that is longer than a piece comes whole"
