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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from benchmarks.quality_cases import SIZE, Case, case_names, case_of, class_prompts, ordinary
from benchmarks.quality_methods import METHODS, NETWORK, applied, train_file
from benchmarks.quality_peers import PEERS, train_peer
from benchmarks.quality_scores import leak, prior_scores, prompt_score, target_score
from benchmarks.quality_table import BASE, key_of, read_records, text_of
from lib_lora.miniature.exam import contact_sheet
from lib_lora.miniature.place import checkpoint_path
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.sample import SampleRequest, sample

CFG = 4.0


@dataclass(frozen=True)
class Budget:
    """How much is drawn for each run: sampler steps, ordinary prompts, prompts of the class; and steps to train."""

    draw_steps: int
    ordinary: int
    classes: int
    steps: int


BUDGETS = {"quick": Budget(8, 6, 2, 40), "full": Budget(16, 20, 8, 200), "tune": Budget(8, 0, 0, 40)}


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
        own = self.plain(seed) if self.plain_prompts() else []
        others = self.draw(model, self.plain_prompts(), seed) if own and name != BASE else own
        sheet = self.out / "pictures" / f"{name.replace(' ', '-')}.{case.name}.{seed}.png"
        sheet.parent.mkdir(parents=True, exist_ok=True)
        shown = [case.references[0][0] if case.kind == "subject" else references[0] for references in case.references]
        contact_sheet([*shown, *pictures, *others], len(pictures)).save(sheet)
        return {
            "score": target_score(case, pictures),
            "prompt": prompt_score(case, pictures),
            **(prior_scores(others, own, self.budget.ordinary) if own else {}),
            **({"leak": leak(case, others[self.budget.ordinary :])} if own and case.kind == "subject" else {}),
            "draw_s": round(time.monotonic() - began, 2),
        }

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
    began = time.monotonic()
    if name in PEERS:
        loss: float | None = train_peer(name, case, folder, seed, bench.steps, bench.rate)
    else:
        loss = train_file(bench.model, name, case, folder, seed, bench.steps, bench.rate)
    took = round(time.monotonic() - began, 2)
    made = [name] if name in PEERS else [name, *(other for other, m in METHODS.items() if m.of == name)]
    for product in made:
        method = METHODS.get(product)
        file = folder / (method.file if method else "trained.safetensors")
        with applied(method.kind if method else NETWORK, file, bench.model) as model:
            facts = bench.measure(product, case, seed, model)
        rate = METHODS[PEERS.get(product, product)].rate if bench.rate is None else bench.rate
        bytes_ = file.stat().st_size
        facts |= {"steps": bench.steps, "rate": rate, "train_s": took, "loss": loss, "bytes": bytes_}
        bench.record(product, case, seed, facts)
    shutil.rmtree(folder, ignore_errors=True)


def run_all(bench: Bench, methods: list[str], cases: list[str], seeds: int) -> None:
    """Everything that is neither recorded nor being done by another process, seed by seed, the base first."""
    for seed in range(seeds):
        for case_name in cases:
            for name in (BASE, *methods):
                steps = 0 if name == BASE else bench.steps
                lock = bench.out / "locks" / f"{name.replace(' ', '-')}.{case_name}.{seed}.{steps}"
                if (name, case_name, seed, steps) in bench.done() or not _taken(lock):
                    continue
                try:
                    case = case_of(case_name)
                    run_base(bench, case, seed) if name == BASE else run_method(bench, name, case, seed)
                finally:
                    lock.unlink(missing_ok=True)


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
        cases = options.cases.split(",") if options.cases else case_names(options.subjects, options.styles)
        model = load_checkpoint(checkpoint_path())
        bench = Bench(options.out, budget, options.steps or budget.steps, model, options.rate)
        run_all(bench, methods, cases, options.seeds)
    if options.budget != "tune":
        print(text_of(read_records(options.out / "results.jsonl")))


if __name__ == "__main__":
    main()
