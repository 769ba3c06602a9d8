"""What each training method does, measured on the miniature, beside diffusers + peft and LyCORIS on the same budget.

    python benchmarks/quality.py --out DIR [--methods lora,loha,...] [--subjects 8] [--styles 4] [--seeds 3]
                                 [--steps 40] [--budget quick|full|tune] [--table]

Each run trains on few pictures of a toy or a style, applies the file it made, and draws fixed prompts. Results are
lines of DIR/results.jsonl; what stands there is not done again, so a stopped run goes on, and several may share a DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image

from benchmarks.quality_cases import SIZE, Case, case_names, case_of, class_prompts, ordinary, turn_by_turn
from benchmarks.quality_methods import METHODS, NETWORK, Order, applied, train_file
from benchmarks.quality_peers import PEERS, train_peer
from benchmarks.quality_scores import leak, prior_scores, prompt_score, target_score
from benchmarks.quality_table import BASE, key_of, read_records, text_of
from lib_lora.miniature.exam import contact_sheet
from lib_lora.miniature.place import checkpoint_path
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.sample import SampleRequest, sample

CFG = 4.0
STRIDE = 6  # of the cases in their order, see run_all


@dataclass(frozen=True)
class Budget:
    """How much is drawn for each run: sampler steps, ordinary prompts, prompts of the class; and steps to train.

    Without the trigger is drawn for the first `plain_seeds` seeds only, and if `plain_cases` are named, for these.
    """

    draw_steps: int
    ordinary: int
    classes: int
    steps: int
    plain_seeds: int
    plain_cases: tuple[str, ...] = ()


BUDGETS = {
    "quick": Budget(8, 6, 2, 40, 1, ("toy-0", "toy-1", "inverted", "outlined")),
    "full": Budget(16, 20, 8, 200, 3),
    "tune": Budget(8, 0, 0, 40, 0),
}


@dataclass(frozen=True)
class Bench:
    """Where results go, how much is done for each, and the base model, of which nothing remains changed."""

    out: Path
    budget: Budget
    steps: int
    model: Any
    rate: float | None = None

    @property
    def results(self) -> Path:
        """The file of results."""
        return self.out / "results.jsonl"

    def draw(self, model: Any, prompts: tuple[str, ...], seed: int) -> list[Image.Image]:
        """One picture for each prompt, the same noise for every method."""
        request = SampleRequest(
            prompts, seed=1000 * (seed + 1), steps=self.budget.draw_steps, cfg=CFG,
            width=SIZE, height=SIZE, batch=len(prompts),
        )  # fmt: skip
        with brief_decoding(model):
            return sample(model, request)

    def plain(self, seed: int) -> list[Image.Image]:
        """What the base draws of ordinary and class prompts, kept in `out`."""
        folder = self.out / "base" / f"{seed}-{self.budget.draw_steps}"
        prompts = self.plain_prompts()
        paths = [folder / f"{number:02}.png" for number in range(len(prompts))]
        if not all(path.is_file() for path in paths):
            folder.mkdir(parents=True, exist_ok=True)
            for path, picture in zip(paths, self.draw(self.model, prompts, seed), strict=True):
                temp = path.with_suffix(f".{os.getpid()}.tmp")
                picture.save(temp, "png")
                temp.replace(path)
        return [Image.open(path).convert("RGB") for path in paths]

    def plain_prompts(self) -> tuple[str, ...]:
        """Prompts without the trigger: ordinary ones, then those of the class."""
        asked = [prompt for _, prompt in ordinary(self.budget.ordinary)]
        return (*asked, *class_prompts(self.budget.classes))

    def done(self) -> set[tuple[str, str, int, int]]:
        """The runs that need not be repeated."""
        return {key_of(record) for record in read_records(self.results)}

    def measure(self, name: str, case: Case, seed: int, model: Any) -> dict[str, Any]:
        """Draw with what was trained, and score it."""
        began = time.monotonic()
        pictures = self.draw(model, case.prompts, seed)
        wanted = seed < self.budget.plain_seeds and case.name in (self.budget.plain_cases or (case.name,))
        own = self.plain(seed) if wanted and self.plain_prompts() else []
        others = self.draw(model, self.plain_prompts(), seed) if own and name != BASE else own
        sheet = self.out / "pictures" / f"{name.replace(' ', '-')}.{case.name}.{seed}.png"
        sheet.parent.mkdir(parents=True, exist_ok=True)
        shown = [case.references[0][0] if case.kind == "subject" else references[0] for references in case.references]
        contact_sheet([*shown[:8], *pictures, *others], 8).save(sheet)
        return {
            "score": target_score(case, pictures),
            "prompt": prompt_score(case, pictures),
            **(prior_scores(others, own, self.budget.ordinary) if own else {}),
            **({"leak": leak(case, others[self.budget.ordinary :])} if own and case.kind == "subject" else {}),
            "draw_s": round(time.monotonic() - began, 2),
        }

    def steps_of(self, name: str) -> int:
        """Optimizer steps of a method, or of the one a peer is compared with."""
        return 0 if name == BASE else self.steps * METHODS[PEERS.get(name, name)].longer

    def order(self, name: str, case: Case, seed: int, folder: Path) -> Order:
        """What to train: pictures and latents are kept in `out`, for all methods."""
        pictures = self.out / "cases" / case.name
        if not pictures.is_dir():
            fresh = self.out / "cases" / f"{case.name}.{os.getpid()}"
            case.write(fresh)
            try:
                fresh.rename(pictures)
            except OSError:  # another process was faster
                shutil.rmtree(fresh)
        rate = METHODS[PEERS.get(name, name)].rate if self.rate is None else self.rate
        latents = self.out / "latents" / case.name
        return Order(case, pictures, latents, folder, seed, self.steps_of(name), rate)

    def record(self, name: str, case: Case, seed: int, facts: dict[str, Any]) -> None:
        """Append one line, in one write, so that several processes may share the file."""
        head = {"method": name, "case": case.name, "kind": case.kind, "seed": seed}
        line = json.dumps(head | facts) + "\n"
        with self.results.open("a", encoding="utf-8") as file:
            file.write(line)
        print(line, end="", flush=True)


def run_base(bench: Bench, case: Case, seed: int) -> None:
    """The untrained base on the case's prompts."""
    bench.record(
        BASE, case, seed, {"steps": 0, "rate": 0.0, "train_s": 0.0, **bench.measure(BASE, case, seed, bench.model)}
    )


def run_method(bench: Bench, name: str, case: Case, seed: int) -> None:
    """Train, apply and measure a method of ours or a peer's, and what else the same run makes."""
    folder = bench.out / "work" / f"{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    began, spent = time.monotonic(), sum(os.times()[:2])
    order = bench.order(name, case, seed, folder)
    loss = train_peer(bench.model, name, order) if name in PEERS else train_file(bench.model, name, order)
    took = round(time.monotonic() - began, 2)
    made = [name] if name in PEERS else [name, *(other for other, m in METHODS.items() if m.of == name)]
    for product in made:
        method = METHODS.get(product)
        file = folder / (method.file if method else "trained.safetensors")
        with applied(method.kind if method else NETWORK, file, bench.model) as model:
            facts = bench.measure(product, case, seed, model)
        cpu = round(sum(os.times()[:2]) - spent, 2)
        facts |= {"steps": order.steps, "rate": order.rate, "loss": loss, "bytes": file.stat().st_size}
        facts |= {"train_s": took, "cpu_s": cpu}  # waiting included; processor time, drawing included
        bench.record(product, case, seed, facts)
    shutil.rmtree(folder, ignore_errors=True)


def run_all(bench: Bench, methods: list[str], cases: list[str], seeds: int) -> None:
    """Everything that is neither recorded nor being done by another process; the base first.

    All methods of one case and seed, then the next, so that wherever it is cut all have had the same; a case's next
    seed follows `STRIDE` cases later, so that there is a spread early.
    """
    turns = sorted((at + STRIDE * seed, seed, case) for at, case in enumerate(cases) for seed in range(seeds))
    for _, seed, case_name in turns:
        for name in (BASE, *methods):
            steps = bench.steps_of(name)
            lock = bench.out / "locks" / f"{name.replace(' ', '-')}.{case_name}.{seed}.{steps}"
            if (name, case_name, seed, steps) in bench.done() or not _taken(lock):
                continue
            try:
                case = case_of(case_name)
                run_base(bench, case, seed) if name == BASE else run_method(bench, name, case, seed)
            finally:
                lock.unlink(missing_ok=True)


@contextmanager
def brief_decoding(model: Any) -> Iterator[None]:
    """While open, the VAE decodes in bfloat16: a quarter of the time, pictures that differ by a few grey levels."""
    decode = model.vae.decode

    def brief(latents: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return decode(latents)

    model.vae.decode = brief
    try:
        yield
    finally:
        del model.vae.decode


def _taken(lock: Path) -> bool:
    """Take the lock unless another process, still alive, has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock.open("x", encoding="ascii") as file:
            file.write(str(os.getpid()))
        return True
    except FileExistsError:
        try:
            os.kill(int(lock.read_text(encoding="ascii") or "0"), 0)
        except (ProcessLookupError, FileNotFoundError):
            lock.unlink(missing_ok=True)
            return _taken(lock)
        return False


def main() -> None:
    """Run what the options name, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="all", help="comma-separated; all, ours, peers")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--styles", type=int, default=4)
    parser.add_argument("--cases", default="", help="comma-separated names instead of --subjects and --styles")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="0: what the budget says")
    parser.add_argument("--rate", type=float, help="another learning rate for every method, for sweeps")
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="quick")
    parser.add_argument("--table", action="store_true", help="only print the table of what is recorded")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        budget = BUDGETS[options.budget]
        own = [name for name, method in METHODS.items() if not method.of]
        groups = {"all": [*own, *PEERS], "ours": own, "peers": list(PEERS)}
        methods = groups.get(options.methods) or [name.strip() for name in options.methods.split(",")]
        names = case_names(options.subjects, options.styles)
        cases = options.cases.split(",") if options.cases else turn_by_turn(names)
        model = load_checkpoint(checkpoint_path())
        bench = Bench(options.out, budget, options.steps or budget.steps, model, options.rate)
        run_all(bench, methods, cases, options.seeds)
    if options.budget != "tune":
        print(text_of(read_records(options.out / "results.jsonl")))


if __name__ == "__main__":
    main()
