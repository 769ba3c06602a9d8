"""A network file rewritten in another dialect, its layers' changes the same. Nothing is left out without being told."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora.errors import BadConfig
from lib_lora.files.codec import base_versions, read_network
from lib_lora.files.hashes import add_hashes
from lib_lora.files.tensors import atomic_file, write_tensors
from lib_lora.keys import peft_config, versions
from lib_lora.networks.network import Network
from lib_lora.tools.drafts import Draft, diffusers, kohya, numbered
from lib_lora.tools.peft_folder import peft

WRITERS: Mapping[str, Callable[[Network, str], Draft]] = {
    "kohya": kohya,
    "diffusers": diffusers,
    "peft": peft,
    "cloneofsimo": numbered,
}
DIALECTS = tuple(WRITERS)
# What the metadata say of the tensors as they were: hashes, PEFT's scale, cloneofsimo's tables.
_STALE = re.compile(
    rf"sshs_model_hash|sshs_legacy_hash|modelspec\.hash_sha256|format|{peft_config.METADATA}"
    r"|unet|text_encoder|(?:unet|text_encoder):\d+:rank"
)
_SHOWN = 3


@dataclass(frozen=True)
class ConvertJob:
    """What to convert into what. `out` is a file, for "peft" a folder. `partial` leaves out what has no place there."""

    source: Path
    out: Path
    to: str
    partial: bool = False


@dataclass(frozen=True)
class ConvertReport:
    """Layers written, files written; layers, names and tokens left out, each with the reason."""

    layers: int
    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()


def convert(job: ConvertJob) -> ConvertReport:
    """Write `job.out`. Its metadata are the source's, without hashes and scales that no longer hold.

    Raises BadFile, UnknownFormat (the source), BadConfig: an unknown dialect, the output is the source, a network for
    another base model, or layers that have no place in the dialect, told by type and reason (see `partial`).
    """
    if job.to not in WRITERS:
        raise BadConfig(f"unknown dialect {job.to!r}; choose one of: {', '.join(DIALECTS)}")
    network = read_network(job.source)
    fitting = base_versions(network)
    if network.layers and fitting[0] not in versions.KNOWN:
        raise BadConfig(
            f"{job.source} is for {versions.title(fitting[0])}; only networks for SD 1.x, SD 2.x and SDXL have a table"
        )
    draft = WRITERS[job.to](network, fitting[0] if fitting else versions.SD1)
    skipped = [*network.unknown, *(f"{key}: {reason}" for key, reason in draft.refused.items())]
    layers = len(network.layers) - len(draft.refused)
    if (skipped and not job.partial) or not (layers or any(draft.files.values())):
        raise BadConfig(_refusal(job, network, draft))
    kept = _without(draft)
    targets = {job.out / name if name else job.out: tensors for name, tensors in kept.files.items()}
    texts = {job.out / name: text for name, text in kept.texts.items()}
    _refuse_bad_output(job, [*targets, *texts])
    for path, tensors in targets.items():
        write_tensors(path, tensors, _metadata(job, network, kept, tensors))
    for path, text in texts.items():
        with atomic_file(path) as file:
            file.write(text.encode("utf-8"))
    return ConvertReport(layers, (*targets, *texts), tuple(skipped), draft.embeddings)


def _without(draft: Draft) -> Draft:
    """The draft without files that would hold nothing."""
    draft.files = {name: tensors for name, tensors in draft.files.items() if tensors}
    return draft


def _metadata(job: ConvertJob, network: Network, draft: Draft, tensors: Mapping[str, object]) -> dict[str, str]:
    kept = {
        name: value for name, value in network.metadata.items() if not _STALE.fullmatch(name) and value != "<embed>"
    }
    metadata = {**kept, **draft.metadata}
    return add_hashes(metadata, tensors) if job.to == "kohya" else metadata  # type: ignore[arg-type]


def _refusal(job: ConvertJob, network: Network, draft: Draft) -> str:
    """Why the network cannot be written whole: reasons with counts and examples."""
    counted = Counter(draft.refused.values())
    told = []
    for reason, number in counted.most_common():
        keys = [str(key) for key, why in draft.refused.items() if why == reason]
        told.append(f"{number} layers ({', '.join(keys[:_SHOWN])}{', ...' if number > _SHOWN else ''}): {reason}")
    if network.unknown:
        told.append(f"{len(network.unknown)} names nobody understands ({', '.join(network.unknown[:_SHOWN])})")
    what = "; ".join(told) or "it has no layer"
    return (
        f"{job.source} cannot be written whole as {job.to!r}: {what}; "
        "choose another dialect, or leave these out with --partial"
    )


def _refuse_bad_output(job: ConvertJob, targets: list[Path]) -> None:
    """Refuse before anything is written what would overwrite the source or cannot be written."""
    folder = job.to == "peft"
    if job.out.exists() and job.out.is_dir() != folder:
        raise BadConfig(
            f"the output {job.out} must be {'a folder' if folder else 'a file'} for {job.to!r}; choose another"
        )
    for target in targets:
        # samefile too: a file system may not tell case apart.
        same = target.exists() and os.path.samefile(target, job.source)
        if same or os.path.realpath(target) == os.path.realpath(job.source):
            raise BadConfig(f"the output {target} is the input; choose another name with -o")
