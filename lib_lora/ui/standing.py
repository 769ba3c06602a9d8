"""Where the job in hand stands, as the page shows it: out of its run's events, the queue and the memory in use."""

from __future__ import annotations

from typing import Any

from lib_lora.train.caption_ops import fill
from lib_lora.train.choose import tag_of
from lib_lora.train.config import JobConfig
from lib_lora.train.history import RunFacts
from lib_lora.train.jobs import ENDINGS, QUEUED
from lib_lora.train.queue import QueueState
from lib_lora.train.story import Seen
from lib_lora.ui.memory import memory
from lib_lora.ui.trainer import TrainStatus

HALTED = "The queue waits; press Resume to go on."
ASKED = {
    "cancel": "stopping after this step",
    "pause": "pausing after this step",
    "save": "keeping the network after this step",
}


def nothing_in_hand(queue: QueueState) -> TrainStatus:
    """Nothing was trained yet."""
    return TrainStatus(doing=_halted(queue), **_common(queue))


def standing(queue: QueueState, job: JobConfig, facts: RunFacts, seen: Seen) -> TrainStatus:
    """The run in hand, or the latest one."""
    state = "running" if queue.busy else "idle" if facts.state == "queued" else facts.state
    now, running = seen.now, state == "running"
    return TrainStatus(
        state=state,
        id=facts.id,
        name=facts.name,
        doing=_doing(queue, seen) if queue.busy else _ended(facts, _halted(queue)),
        step=facts.step,
        total=facts.steps,
        epoch=int(now.get("epoch", 0)),
        loss=now.get("loss"),
        lr=now.get("lr"),
        eta_s=now.get("eta_s") if running else None,
        step_s=now.get("step_s"),
        points=seen.points,
        samples=seen.samples,
        log=seen.log,
        result=facts.files[0] if facts.files else None,
        tag=tag_of(job),
        words=fill(job.data.template, job.data),
        **_common(queue),
    )


def _common(queue: QueueState) -> dict[str, Any]:
    used, total = memory()
    return {"waiting": queue.waiting, "memory": used, "memory_total": total}


def _halted(queue: QueueState) -> str:
    return HALTED if queue.halted and queue.waiting else ""


def _doing(queue: QueueState, seen: Seen) -> str:
    if queue.asked:
        return ASKED[queue.asked]
    kind = seen.last.get("type")
    if kind == "preparing":
        return f"making pictures ready: {seen.last['done']} of {seen.last['total']}"
    if kind in ("step", "saved", "sample", "started"):
        return "training"
    if kind == QUEUED:
        return "waiting for the model"
    return "making the model free" if kind in ENDINGS else str(seen.last.get("message", ""))


def _ended(facts: RunFacts, halted: str) -> str:
    """Why nothing is trained, in words."""
    told = facts.message
    if facts.state == "paused" or not halted:
        return told
    return f"{told}{'' if told[-1] in '.!?' else '.'} {halted}" if told else halted
