"""Sliders: networks whose strength moves one property, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_lora.errors import BadConfig, BadDataset
from lib_lora.models.sample import FACTOR
from lib_lora.ports import Conditioning, DiffusionModel
from lib_lora.train import keyed
from lib_lora.train.captions import Dataset, Item
from lib_lora.train.config import JobConfig
from lib_lora.train.diffusion import diffusion_losses
from lib_lora.train.images import list_pictures, sizes
from lib_lora.train.learners import Learner
from lib_lora.train.methods.lcm import Course
from lib_lora.train.methods.network import NetworkMethod, of_the_unet
from lib_lora.train.plan import Visit
from lib_lora.train.sections import NetworkSection

if TYPE_CHECKING:
    from lib_lora.train.session import Session

BOTH = (1.0, -1.0)


class SliderMethod(NetworkMethod):
    """A direction between two prompts (Gandikota et al. 2023, https://arxiv.org/abs/2311.12092); no pictures needed.

    At strength s the network is to say, of the target c: eps(c) + s g mean over p of (eps(c+, p) - eps(c-, p)), all of
    the base model, for p the words to preserve.
    """

    name = "slider"
    pictures = False
    strengths = BOTH

    def section(self, job: JobConfig) -> NetworkSection:
        """Of the UNet only: both ends of a slider are read by the same text encoder."""
        return of_the_unet(job.network)

    def learners(self, job: JobConfig, model: DiffusionModel) -> tuple[Learner, ...]:
        method = job.method
        if not (method.slider_positive.strip() or method.slider_negative.strip()):
            raise BadConfig(
                "method.slider_positive = '' and method.slider_negative = '' give a slider no direction; "
                "say what strength 1 brings, e.g. old person, and strength -1, e.g. young person"
            )
        return super().learners(job, model)

    def dataset(self, job: JobConfig) -> Dataset:
        """One item, the target: there are no pictures."""
        size = (job.data.resolution, job.data.resolution)
        return Dataset((Item(Path("slider"), job.method.slider_target, size=size, bucket=size),))

    def losses(self, session: Session, visits: Sequence[Visit]) -> Tensor:
        method, count, course = session.job.method, len(visits), Course(session, visits)
        target = session.text_of_prompts([method.slider_target] * count)
        noisy = self._noisy(session, visits, course, target)
        with torch.no_grad(), session.plain():
            goal = session.predict(noisy, course.start, target)
            preserve = method.slider_preserve or ("",)
            for words in preserve:
                ends = (_with(method.slider_positive, words), _with(method.slider_negative, words))
                more, less = (session.predict(noisy, course.start, session.text_of_prompts([e] * count)) for e in ends)
                goal = goal + session.strength * method.slider_guidance * (more - less) / len(preserve)
        output = session.predict(noisy, course.start, target)
        return (output.float() - goal.float()).square().flatten(1).mean(1)

    def _noisy(self, session: Session, visits: Sequence[Visit], course: Course, text: Conditioning) -> Tensor:
        """What the model with the network as it is draws of the target, up to each visit's timestep, by DDIM."""
        side = session.job.data.resolution // FACTOR
        seed, rows = session.job.training.seed, []
        last = len(session.objective.alphas_cumprod) - 1
        stride = max(last // session.job.method.slider_steps, 1)
        with torch.no_grad():
            for row, visit in enumerate(visits):
                source = keyed.generator(seed, "slider", visit.step, visit.slot)
                z = torch.randn((1, 4, side, side), generator=source).to(session.device)
                own = text.map(lambda t: t[row : row + 1])  # noqa: B023 - called at once
                time, end = last, int(course.start[row])
                while time > end:
                    times = torch.tensor([time], device=session.device)
                    eps, x0 = course.split(session.predict(z, times, own), z, times)
                    time = max(time - stride, end)
                    z = course.mix(x0, eps, torch.tensor([time], device=session.device))
                rows.append(z)
        return torch.cat(rows)


class ImageSliderMethod(NetworkMethod):
    """A direction between pictures: strength -1 learns those before, strength 1 those after, by equal noise."""

    name = "image_slider"
    strengths = BOTH

    def section(self, job: JobConfig) -> NetworkSection:
        """Of the UNet only, as for sliders between words."""
        return of_the_unet(job.network)

    def dataset(self, job: JobConfig) -> Dataset:
        """The pictures before, and at a fixed distance from each its picture after, without visits of its own."""
        if not job.method.pairs_after.strip():
            raise BadConfig("method.pairs_after = '' names no folder; give that of the pictures after the change")
        folder = Path(job.method.pairs_after).expanduser()
        if not folder.is_dir():
            raise BadDataset(f"method.pairs_after = {job.method.pairs_after!r} is not a folder; give one of pictures")
        before = super().dataset(job)
        after = {path.stem: path for path in list_pictures(folder)}
        alone = [item.path.name for item in before.items if item.path.stem not in after]
        if alone:
            raise BadDataset(
                f"{len(alone)} pictures of data.folder have none of their name in method.pairs_after = "
                f"{job.method.pairs_after!r}, first: {alone[0]!r}; give both or remove it"
            )
        _, broken = sizes([after[item.path.stem] for item in before.items])
        if broken:
            raise BadDataset(
                f"{len(broken)} pictures of method.pairs_after cannot be read, first: {broken[0].reason}; "
                "mend them, or take these pairs out"
            )
        twins = [replace(item, path=after[item.path.stem], repeats=0) for item in before.items]
        return replace(before, items=(*before.items, *twins))

    def losses(self, session: Session, visits: Sequence[Visit]) -> Tensor:
        distance = len(session.dataset.items) // 2 if session.strength > 0 else 0
        return diffusion_losses(session, [replace(visit, index=visit.index + distance) for visit in visits])


def _with(end: str, words: str) -> str:
    return ", ".join(part for part in (end.strip(), words.strip()) if part)
