"""From the recorded runs to a table: means, spread over seeds, lifts over the base, thresholds, ratios to peers."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality_peers import PEERS

BASE = "base"
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
    """One row for each method of the subject or style cases, in the order of the records."""
    chosen = [r for r in records if r["kind"] == kind]
    spread = pooled_spread(chosen)
    base = {(r["case"], r["seed"]): r for r in chosen if r["method"] == BASE}
    rows = []
    for name in dict.fromkeys(r["method"] for r in chosen if r["method"] != BASE):
        own = [r for r in chosen if r["method"] == name and (r["case"], r["seed"]) in base]
        if not own:
            continue
        pairs = [(r, base[r["case"], r["seed"]]) for r in own]
        row: dict[str, Any] = {"method": name, "runs": len(own), "rate": own[0]["rate"], "steps": own[0]["steps"]}
        for value in ("score", "prompt", "prior", "kept", "kept_class"):
            row[value] = _mean(r[value] for r in own)
            row[f"base {value}"] = _mean(b[value] for _, b in pairs)
        row["spread"] = pooled_spread(own)
        row["lift"] = row["score"] - row["base score"]
        row["needed"] = threshold(spread, len(own))
        row["passes"] = row["lift"] > row["needed"]
        row["seconds"] = _mean(r["train_s"] for r in own)
        rows.append(row)
    return rows


def paired_ratio(records: Sequence[Record], peer: str) -> tuple[float, int]:
    """Our method's lift divided by the peer's, over the (case, seed) both have; and how many these are."""
    found: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for record in records:
        found[record["method"]][record["case"], record["seed"]] = record["score"]
    ours, theirs, base = found[PEERS[peer]], found[peer], found[BASE]
    both = sorted(ours.keys() & theirs.keys() & base.keys())
    if not both:
        return math.nan, 0
    lift = sum(theirs[at] - base[at] for at in both)
    return (sum(ours[at] - base[at] for at in both) / lift if lift else math.nan), len(both)


def text_of(records: Sequence[Record]) -> str:
    """The tables as Markdown."""
    parts = []
    for kind in ("subject", "style"):
        rows = summary(records, kind)
        if rows:
            spread = pooled_spread([r for r in records if r["kind"] == kind])
            parts.append(_table(rows, kind, spread))
    ratios = [(peer, *paired_ratio(records, peer)) for peer in PEERS]
    lines = [f"| {PEERS[p]} | {p} | {ratio:.2f} | {count} |" for p, ratio, count in ratios if count]
    if lines:
        head = "| ours | peer | lift, ours / peer's | common runs |\n|---|---|---|---|\n"
        parts.append(head + "\n".join(lines))
    return "\n\n".join(parts) or "nothing recorded yet"


def _table(rows: Sequence[Mapping[str, Any]], kind: str, spread: float) -> str:
    head = (
        f"{kind}: base {rows[0]['base score']:.3f}; spread over seeds, pooled, {spread:.4f}; a lift passes above "
        f"{SURE:g} x {spread:.4f} x sqrt(2 / runs)\n\n"
        "| method | lr | runs | score | spread | lift | needed | | prompt (base) | prior (base) | kept | class kept "
        "| s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = [
        f"| {r['method']} | {r['rate']:g} | {r['runs']} | {r['score']:.3f} | {_number(r['spread'])} | {r['lift']:+.3f} "
        f"| {_number(r['needed'])} | {_verdict(r)} | {r['prompt']:.2f} ({r['base prompt']:.2f}) "
        f"| {r['prior']:.2f} ({r['base prior']:.2f}) | {r['kept']:.3f} | {r['kept_class']:.3f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    return head + "\n".join(lines)


def _verdict(row: Mapping[str, Any]) -> str:
    if math.isnan(row["needed"]):
        return "?"  # nothing was repeated yet, so that there is no spread
    return "pass" if row["passes"] else "FAIL"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
