"""Damaged network files, for as long as you like: each is read in every way and applied to a small model.

    python -m benchmarks.fuzz [--minutes 10] [--seed 0] [--keep FOLDER] [--memory 4]

What must hold: a file is read, or refused with one of lib_lora's errors naming it; whatever was read leaves finite
weights, and after restoring them the model is the same bit for bit; nothing takes long or much memory. Findings are
printed and their files kept. Files and damages come from tests/files/corpus.py. With atheris installed, `--atheris`
lets coverage guide the bytes instead.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tests.files.corpus import Seed

SECONDS = 20  # for one file
STRENGTHS = (1.0, -0.7, 0.5, 100.0)
MODEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class TooSlow(Exception):
    """One file took longer than `SECONDS`."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises TooSlow in here after `SECONDS`, where the system can."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlow(f"took longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def limit_memory(gigabytes: float) -> None:
    """Beyond this the process gets no memory, so that greed shows as an error."""
    with contextlib.suppress(ImportError):
        import resource

        most = int(gigabytes * (1 << 30))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Fuzzer:
    """Draws, tries and counts."""

    def __init__(self, keep: Path) -> None:
        from tests.files import corpus  # here, since atheris must be there first where it is used

        self.keep, self.corpus = keep, corpus
        self.seeds = corpus.corpus()
        self.names = sorted(self.seeds)
        self.vocabulary = sorted({name for seed in self.seeds.values() for name in seed.tensors})
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.findings: dict[str, str] = {}

    def one(self, number: int) -> None:
        """Make, damage, read and apply file `number`; equal numbers do equal things."""
        rng = random.Random(number)
        seed = self.seeds[rng.choice(self.names)]
        with tempfile.TemporaryDirectory() as where:
            path = self.written(seed, rng, Path(where))
            if path is None:
                self.outcomes["not writable"] += 1
                return
            self.attempt(number, path, rng)

    def written(self, seed: Seed, rng: random.Random, where: Path) -> Path | None:
        """A damaged file: three times of four in what it says, else or also in its bytes."""
        if rng.random() < 0.75:
            seed = self.corpus.damaged(seed, rng, self.vocabulary)
        try:
            path = seed.write(where)
        except (UnicodeError, ValueError, OSError):
            return None
        if rng.random() < 0.4:
            path.write_bytes(self.corpus.broken(path.read_bytes(), rng))
        return path

    def attempt(self, number: int, path: Path, rng: random.Random) -> None:
        """Read and apply, and keep the file if that ends in anything unexpected."""
        try:
            with limited():
                result = self.corpus.outcome(path, rng.choice(MODEL_DTYPES), rng.choice(STRENGTHS))
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:200]}"
            kind = f"{type(error).__name__} {Path(where.filename).name}:{where.lineno}"
            result = "FINDING"
            if kind not in self.findings:
                self.findings[kind] = f"{number}: {what}"
                (self.keep / f"{number}{path.suffix}").write_bytes(path.read_bytes())
                print(f"finding {number}: {what}", flush=True)
        self.outcomes[result] += 1

    def report(self, seconds: float) -> None:
        """Print the counts."""
        total = sum(self.outcomes.values())
        print(f"{total} files in {seconds:.0f} s ({total / seconds:.0f} per second); {len(self.findings)} findings")
        for name, count in self.outcomes.most_common():
            print(f"  {name:20} {count:9} {100 * count / total:5.1f} %")


def guided(keep: Path, minutes: float) -> None:
    """Let atheris choose bytes by what code they reach; ends the process, at the first finding."""
    import atheris

    with atheris.instrument_imports(include=["lib_lora"]):
        from tests.files import corpus

    place = Path(tempfile.mkdtemp())

    def one(data: bytes) -> None:
        path = place / "x.safetensors"  # the content decides what it is
        path.write_bytes(data)
        corpus.outcome(path, MODEL_DTYPES[len(data) % 3], 1.0)

    folder = keep / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(corpus.corpus().values()):
        few = corpus.Seed(dict(list(seed.tensors.items())[:6]), seed.metadata, seed.form, seed.as_list)
        (folder / str(i)).write_bytes(few.write(place).read_bytes())
    limits = [f"-max_total_time={int(minutes * 60)}", "-max_len=30000", "-rss_limit_mb=6000", f"-timeout={SECONDS}"]
    atheris.Setup([sys.argv[0], str(folder), f"-artifact_prefix={keep}/", *limits], one)
    atheris.Fuzz()


def main() -> None:
    """Run for the given time and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="number of the first file")
    parser.add_argument("--count", type=int, default=0, help="stop after so many files; 1 repeats a finding")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the files of findings")
    parser.add_argument("--memory", type=float, default=6, help="GB this process may have, address space included")
    parser.add_argument("--atheris", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    if args.atheris:
        guided(keep, args.minutes)
    fuzzer = Fuzzer(keep)
    limit_memory(args.memory)
    start = told = time.monotonic()
    number = args.seed
    while time.monotonic() - start < args.minutes * 60 and (not args.count or number < args.seed + args.count):
        fuzzer.one(number)
        number += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            fuzzer.report(told - start)
    fuzzer.report(time.monotonic() - start)
    print(f"next: --seed {number}; files of findings in {keep}")
    raise SystemExit(bool(fuzzer.findings))


if __name__ == "__main__":
    main()
