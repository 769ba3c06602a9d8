"""The quality benchmark's own parts: cases, scores, table. What it measures takes hours and is not tested here."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import quality, quality_table
from benchmarks.quality_cases import ASKED, SIZE, TRIGGER, TUNING, case_names, case_of, ordinary, turn_by_turn
from benchmarks.quality_methods import METHODS
from benchmarks.quality_peers import PEERS
from benchmarks.quality_scores import attributes, leak, prior_scores, prompt_score, target_score
from benchmarks.quality_styles import STYLES, style_score
from lib_lora.miniature.draw import background, draw_toy, pose_for, render
from lib_lora.miniature.place import checkpoint_path
from lib_lora.miniature.scenes import Scene
from lib_lora.miniature.score import auc, subject_score
from lib_lora.miniature.subjects import SUBJECTS, photograph
from lib_lora.miniature.toys import Toy
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.sample import SampleRequest, sample
from lib_lora.train.config import make_job


@pytest.fixture(scope="module")
def model() -> Any:
    """The miniature; whoever changes it puts it back."""
    return load_checkpoint(checkpoint_path())


def _drawn(toy: Toy, scene: Scene, rng: random.Random) -> Image.Image:
    return draw_toy(background(scene.background, SIZE, rng.getrandbits(30)), toy, pose_for(scene, SIZE, rng))


def test_there_are_eight_toys_that_nothing_else_draws_and_four_styles() -> None:
    assert case_names() == [f"toy-{n}" for n in range(8)] + list(STYLES)
    assert len(STYLES) == 4 and TUNING not in case_names()
    first = quality.case_of("toy-0").references[0][0].tobytes()
    assert case_of("toy-0").references[0][0].tobytes() == first  # the same in every process
    from benchmarks import quality_cases

    toys = [quality_cases._toy(name) for name in (*case_names(styles=0), TUNING)]
    assert len(set(toys)) == 9 and not set(toys) & set(SUBJECTS.values())
    assert quality_cases.FIRST_TOY > 2**30  # the miniature's own toys have 30-bit seeds


@pytest.mark.parametrize("name", [*STYLES, "toy-0"])
def test_training_pictures_have_captions_with_the_trigger_and_none_is_asked_for(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    case.write(tmp_path)
    pictures, captions = sorted(tmp_path.glob("*.png")), sorted(tmp_path.glob("*.txt"))
    assert 6 <= len(pictures) == len(captions) <= 12
    texts = [path.read_text(encoding="utf-8") for path in captions]
    assert all(TRIGGER in text.replace(",", " ").split() for text in texts)
    assert len(case.prompts) == len(case.asked) == len(case.references)
    seen = [Image.open(path).tobytes() for path in pictures]
    assert not any(r.tobytes() in seen for own in case.references for r in own)
    if case.kind == "style":
        assert not set(texts) & set(case.prompts)


@pytest.mark.parametrize("name", STYLES)
def test_the_style_score_tells_styled_drawings_from_plain_ones(name: str) -> None:
    case = case_of(name)
    pairs = list(zip(case.asked, case.references, strict=True))
    plain = [render(scene, SIZE, 50) for scene, _ in pairs]
    own = [references for _, references in pairs]
    same = [style_score([STYLES[name](picture)], [r]) for picture, r in zip(plain, own)]
    other = [style_score([picture], [r]) for picture, r in zip(plain, own)]
    assert auc(same, other) > 0.95
    others = [style_score([STYLES[n](p)], [r]) for n in STYLES if n != name for p, r in zip(plain, own)]
    assert auc(same, others) > 0.95


def test_what_a_drawing_shows_is_found_and_what_it_does_not_is_not() -> None:
    rng = random.Random(1)
    toys = [Toy.from_seed(2**31 + n) for n in range(4)]
    for toy in toys:
        assert all(all(attributes(_drawn(toy, scene, rng), scene).values()) for scene in ASKED)
    opposite = {"big": "small", "small": "big", "": ""}
    places = {"on the left": "on the right", "on the right": "on the left", "at the top": "at the bottom"}
    for scene in ASKED:
        wrong = Scene("toy", "", "orange", opposite[scene.size], places.get(scene.position, scene.position))
        assert not any(attributes(_drawn(toys[0], wrong, rng), scene).values())


def test_scores_of_right_pictures_are_higher_than_those_of_another_toys() -> None:
    case, rng = case_of("toy-0"), random.Random(2)
    right = [_drawn(Toy.from_seed(2**31), scene, rng) for scene in case.asked]
    wrong = [_drawn(Toy.from_seed(2**31 + 1), scene, rng) for scene in case.asked]
    assert target_score(case, right) > target_score(case, wrong) + 0.1
    assert prompt_score(case, right) == prompt_score(case, wrong) == 1.0
    assert leak(case, right) == pytest.approx(subject_score(right, case.references[0]))


def test_a_prior_that_is_kept_and_one_that_is_not() -> None:
    own = [render(scene, SIZE, n) for n, (scene, _) in enumerate(ordinary(4))]
    toys = [photo.image for photo in photograph(SUBJECTS["bo"], 4)]
    assert prior_scores([*own, *toys], [*own, *toys], 4) == pytest.approx({"prior": 1, "kept": 1, "kept_class": 1})
    lost = prior_scores([*toys, *own], [*own, *toys], 4)
    assert lost["prior"] == 0 and lost["kept"] < 0.8 and lost["kept_class"] < 0.8


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_settings_are_those_of_a_job(name: str) -> None:
    method = METHODS[name]
    job = make_job({**method.settings, method.rate_key: method.rate})
    assert job.get(method.rate_key) == method.rate
    assert not method.of or METHODS[method.of].settings == method.settings


def test_the_issues_methods_are_all_there_and_peers_name_theirs() -> None:
    types = {method.settings.get("network.type") for method in METHODS.values()}
    assert types >= {"lora", "locon", "loha", "lokr", "ia3", "glora", "full", "norm", "dylora", "oft", "boft"}
    names = {method.settings.get("method.name") for method in METHODS.values()}
    assert names >= {"dreambooth", "textual_inversion", "pivotal_tuning", "custom_diffusion", "hypernetwork"}
    assert set(PEERS.values()) <= set(METHODS) and not set(PEERS) & set(METHODS)


@pytest.mark.parametrize("name", ["lora", "peft lora", "lycoris lokr"])
def test_one_step_of_ours_and_of_the_peers_makes_a_file_that_is_applied(name: str, model: Any, tmp_path: Path) -> None:
    if name in PEERS:
        pytest.importorskip(name.split()[0])
    bench = quality.Bench(tmp_path, quality.Budget(1, 0, 0, 1, 0), 1, model)
    before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    quality.run_method(bench, name, case_of("toy-0"), 0)
    (record,) = quality_table.read_records(bench.results)
    assert (record["method"], record["steps"], record["seed"]) == (name, 1, 0)
    assert 0 < record["score"] < 1 and record["bytes"] > 10_000 and record["loss"] > 0
    after = model.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], value) for key, value in before.items())


def _record(method: str, seed: int, score: float, case: str = "toy-0") -> dict[str, object]:
    rest = dict.fromkeys(("prompt", "prior", "kept", "kept_class", "cpu_s"), 1.0)
    return {
        "method": method,
        "case": case,
        "kind": "subject",
        "seed": seed,
        "steps": 4,
        "rate": 1,
        "score": score,
    } | rest


def test_the_table_by_hand() -> None:
    scores = {"base": (0.40, 0.42), "lora": (0.60, 0.64), "peft lora": (0.50, 0.52), "norm": (0.41, 0.45)}
    records = [_record(name, seed, score) for name, two in scores.items() for seed, score in enumerate(two)]
    spread = math.sqrt((2 * 0.01**2 + 2 * 0.02**2 + 2 * 0.01**2 + 2 * 0.02**2) / 4)
    assert quality_table.pooled_spread(records) == pytest.approx(spread)
    rows = {row["method"]: row for row in quality_table.summary(records[::-1], "subject")}
    assert list(rows) == ["lora", "norm", "peft lora"]
    assert rows["lora"]["lift"] == pytest.approx(0.21)
    assert rows["lora"]["needed"] == pytest.approx(3 * spread * math.sqrt(2 / 2))
    assert rows["lora"]["error"] == pytest.approx(0.01)  # lifts 0.20 and 0.22
    assert rows["norm"]["beside"] == pytest.approx((-0.19, 0.0))
    assert rows["lora"]["passes"] and not rows["norm"]["passes"]
    compared = quality_table.paired(records, "lora", "peft lora")
    assert (compared["ours"], compared["peer"], compared["runs"]) == (pytest.approx(0.21), pytest.approx(0.10), 2)
    assert compared["difference"] == pytest.approx(0.11)
    assert compared["error"] == pytest.approx(0.01)  # differences 0.10 and 0.12: s 0.01 sqrt 2, over sqrt 2
    assert quality_table.paired(records, "lora", "peft dora") == {"runs": 0}
    text = quality_table.text_of(records)
    assert "| lora |" in text and "pass" in text and "FAIL" in text
    assert "| lora | peft lora | +0.210 | +0.100 | +0.110 | 0.010 | 2 |" in text


def test_what_was_not_drawn_at_every_seed_is_averaged_over_those_where_it_was() -> None:
    first, second = _record("lora", 0, 0.6), _record("lora", 1, 0.6)
    first["prior"] = 0.5
    del second["prior"]
    (row,) = quality_table.summary([_record("base", 0, 0.4), _record("base", 1, 0.4), first, second], "subject")
    assert row["prior"] == 0.5 and row["runs"] == 2


def test_wherever_a_run_is_cut_subjects_and_styles_have_had_their_turns() -> None:
    assert turn_by_turn(["toy-0", "toy-1", "toy-2", "washed", "halftone"]) == [
        *("toy-0", "toy-1", "washed", "toy-2", "halftone")
    ]
    assert sorted(turn_by_turn(case_names())) == sorted(case_names())


def test_brief_decoding_changes_pictures_by_little_and_leaves_the_model_as_it_was(model: Any) -> None:
    request = SampleRequest(("a red circle on gray",), steps=2, width=SIZE, height=SIZE)
    (exact,) = sample(model, request)
    with quality.brief_decoding(model):
        (brief,) = sample(model, request)
    far = np.abs(np.asarray(exact, int) - np.asarray(brief, int))
    assert 0 < far.mean() < 1 and far.max() <= 16
    assert sample(model, request)[0].tobytes() == exact.tobytes()


def test_pictures_of_a_case_are_written_once_and_a_longer_method_gets_its_steps(tmp_path: Path) -> None:
    bench = quality.Bench(tmp_path, quality.BUDGETS["quick"], 4, None)
    case = case_of("toy-0")
    first = bench.order("lora", case, 0, tmp_path / "work")
    written = {path: path.stat().st_mtime_ns for path in first.pictures.iterdir()}
    again = bench.order("peft lora", case, 1, tmp_path / "work")
    assert again.pictures == first.pictures and again.rate == first.rate == METHODS["lora"].rate
    assert {path: path.stat().st_mtime_ns for path in again.pictures.iterdir()} == written
    longer = [name for name, method in METHODS.items() if method.longer > 1]
    assert {name: bench.steps_of(name) for name in longer} == {name: 4 * METHODS[name].longer for name in longer}
    assert bench.steps_of("lora") == bench.steps_of("peft lora") == 4 and bench.steps_of("base") == 0


def test_without_repeated_seeds_nothing_is_decided() -> None:
    text = quality_table.text_of([_record("base", 0, 0.4), _record("lora", 0, 0.6)])
    assert "| ? |" in text and "pass |" not in text and "FAIL" not in text


def test_runs_that_are_recorded_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = quality.Bench(tmp_path, quality.BUDGETS["quick"], 4, None)
    done: list[tuple[str, str, int]] = []

    def note(bench: quality.Bench, name: str, case: object, seed: int) -> None:
        done.append((name, case.name, seed))  # type: ignore[attr-defined]
        bench.record(name, case, seed, {"steps": 4})  # type: ignore[arg-type]

    def base(bench: quality.Bench, case: object, seed: int) -> None:
        note(bench, "base", case, seed)

    monkeypatch.setattr(quality, "run_method", note)
    monkeypatch.setattr(quality, "run_base", base)
    (tmp_path / "results.jsonl").write_text(json.dumps(_record("lora", 0, 0.5)) + "\n", encoding="utf-8")
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "oft.toy-0.0.4").write_text("1", encoding="ascii")  # process 1 is alive, so it is at work
    (locks / "norm.toy-0.0.4").write_text("999999999", encoding="ascii")  # and this one is not
    quality.run_all(bench, ["lora", "norm", "oft"], ["toy-0"], 1)
    assert done == [("base", "toy-0", 0), ("norm", "toy-0", 0)]
    assert [path.name for path in locks.iterdir()] == ["oft.toy-0.0.4"]
