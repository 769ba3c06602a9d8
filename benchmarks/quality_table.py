"""From the recorded runs to a table: means, spread over seeds, lifts over the base, thresholds, peers."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality_methods import METHODS
from benchmarks.quality_peers import PEERS

BASE = "base"
FIRST = "lora"  # each method is also held beside this one, on the cases and seeds both have
SURE = 3.0  # how many standard errors a lift must be
Record = Mapping[str, Any]


def read_records(path: Path) -> list[Record]:
    """The runs of a JSONL file; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def key_of(record: Record) -> tuple[str, str, int, int]:
    """What a run is: method, case, seed, steps (the base has none)."""
    return record["method"], record["case"], record["seed"], record["steps"]


def pooled_spread(records: Iterable[Record], value: str = "score") -> float:
    """Standard deviation over seeds within (method, case), pooled over all of them; NaN without repeated seeds."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        groups[record["method"], record["case"]].append(record[value])
    squares = sum((x - sum(g) / len(g)) ** 2 for g in groups.values() for x in g)
    degrees = sum(len(g) - 1 for g in groups.values())
    return math.sqrt(squares / degrees) if degrees else math.nan


def threshold(spread: float, count: int) -> float:
    """The lift that `count` paired runs must exceed: 3 standard errors of a difference, s sqrt(2 / n)."""
    return SURE * spread * math.sqrt(2 / count)


def summary(records: Sequence[Record], kind: str) -> list[dict[str, Any]]:
    """One row for each method of the subject or style cases: ours in their usual order, then the peers'."""
    chosen = [r for r in records if r["kind"] == kind]
    spread = pooled_spread(chosen)
    base = {(r["case"], r["seed"]): r for r in chosen if r["method"] == BASE}
    rows = []
    known = [*METHODS, *PEERS]
    for name in sorted({r["method"] for r in chosen if r["method"] != BASE}, key=known.index):
        own = [r for r in chosen if r["method"] == name and (r["case"], r["seed"]) in base]
        if not own:
            continue
        pairs = [(r, base[r["case"], r["seed"]]) for r in own]
        row: dict[str, Any] = {"method": name, "runs": len(own), "rate": own[0]["rate"], "steps": own[0]["steps"]}
        for value in ("score", "prompt", "prior", "kept", "kept_class"):  # the last three are of some seeds only
            row[value] = _mean(r[value] for r in own if value in r)
            row[f"base {value}"] = _mean(b[value] for _, b in pairs if value in b)
        row["spread"] = pooled_spread(own)
        row["lift"] = row["score"] - row["base score"]
        row["error"] = _error([r["score"] - b["score"] for r, b in pairs])
        row["needed"] = threshold(spread, len(own))
        row["passes"] = row["lift"] > row["needed"]
        against = paired(chosen, name, FIRST)
        row["beside"] = (against["difference"], against["error"]) if against["runs"] else (math.nan, math.nan)
        row["cpu"] = _mean(r["cpu_s"] for r in own if "cpu_s" in r)
        rows.append(row)
    return rows


def paired(records: Sequence[Record], ours: str, peer: str) -> dict[str, float]:
    """Ours against a peer over the (case, seed) both have.

    `ours`, `peer`: mean lifts; `difference` of the two and its standard `error` over these pairs, NaN for one pair;
    `runs`: how many they are.
    """
    found: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for record in records:
        found[record["method"]][record["case"], record["seed"]] = record["score"]
    both = sorted(found[ours].keys() & found[peer].keys() & found[BASE].keys())
    if not both:
        return {"runs": 0}
    lifts = {name: [found[name][at] - found[BASE][at] for at in both] for name in (ours, peer)}
    differences = [mine - other for mine, other in zip(lifts[ours], lifts[peer], strict=True)]
    means = {"ours": _mean(lifts[ours]), "peer": _mean(lifts[peer]), "difference": _mean(differences)}
    return {**means, "error": _error(differences), "runs": len(both)}


def text_of(records: Sequence[Record]) -> str:
    """The tables as Markdown."""
    parts = []
    for kind in ("subject", "style"):
        rows = summary(records, kind)
        if rows:
            parts.append(_heading([r for r in records if r["kind"] == kind]) + _table(rows))
    pairs = [(peer, paired(records, PEERS[peer], peer)) for peer in PEERS]
    lines = [
        f"| {PEERS[peer]} | {peer} | {p['ours']:+.3f} | {p['peer']:+.3f} | {p['difference']:+.3f} "
        f"| {_number(p['error'])} | {p['runs']} |"
        for peer, p in pairs
        if p["runs"]
    ]
    if lines:
        head = "| ours | peer | our lift | peer's | difference | its standard error | common runs |\n"
        parts.append(head + "|---|---|---|---|---|---|---|\n" + "\n".join(lines))
    return "\n\n".join(parts) or "nothing recorded yet"


def _heading(records: Sequence[Record]) -> str:
    """What there is of one kind of case, and what a lift is held against."""
    base = [r for r in records if r["method"] == BASE]
    cases = ", ".join(dict.fromkeys(r["case"] for r in base))
    spread = pooled_spread(records)
    return (
        f"**{records[0]['kind']}s** ({cases}): base {_number(_mean(r['score'] for r in base))}; spread over seeds, "
        f"pooled, {_number(spread)}; a lift passes above {SURE:g} x {_number(spread)} x sqrt(2 / runs)\n\n"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("method", "lr", "steps", "runs", "score", "spread", "lift", "its error", "needed", "")
    heads += ("minus LoRA", "prompt (base)", "prior (base)", "kept", "class kept", "CPU s")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for r in rows:
        both = (f"{r[value]:.2f} ({r[f'base {value}']:.2f})" for value in ("prompt", "prior"))
        lift = (_number(r["spread"]), f"{r['lift']:+.3f}", _number(r["error"]), _number(r["needed"]), _verdict(r))
        kept = (_number(r["kept"]), _number(r["kept_class"]), f"{r['cpu']:.0f}")
        beside = "" if r["method"] == FIRST else f"{r['beside'][0]:+.3f} ({_number(r['beside'][1])})"
        head = (r["method"], f"{r['rate']:g}", str(r["steps"]), str(r["runs"]), f"{r['score']:.3f}")
        lines.append(f"| {' | '.join((*head, *lift, beside, *both, *kept))} |")
    return "\n".join(lines)


def _verdict(row: Mapping[str, Any]) -> str:
    if math.isnan(row["needed"]):
        return "?"  # nothing was repeated yet, so that there is no spread
    return "pass" if row["passes"] else "FAIL"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def _error(differences: Sequence[float]) -> float:
    """Standard error of the mean of paired differences; NaN for one."""
    many = len(differences) > 1
    return statistics.stdev(differences) / math.sqrt(len(differences)) if many else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
