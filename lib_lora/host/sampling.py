"""Where the webui's sampler stands: the step, in the first pass or the hires pass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lib_lora.host.detect import Webui
from lib_lora.prompt import Moment

ADAPTIVE = "DPM adaptive"  # takes as many steps as it likes


def in_hires_pass(p: Any, params_list: Iterable[Any]) -> bool:
    """Whether these tags are those of the hires pass.

    With --lowvram the webui activates them before the first pass as well, to encode the texts in time.
    """
    if getattr(p, "is_hr_pass", False):
        return True
    tags = (getattr(p, "hr_extra_network_data", None) or {}).values()
    of_hires = {id(params) for found in tags for params in found}
    return any(id(params) in of_hires for params in params_list)


def start_of(p: Any, hires: bool) -> Moment:
    """The first moment of a pass."""
    steps = (getattr(p, "hr_second_pass_steps", 0) if hires else 0) or getattr(p, "steps", 1)
    return Moment(0, max(int(steps), 1), hires)


def is_drawn(p: Any, params: Any) -> bool:
    """Whether a denoiser callback is for this picture."""
    denoiser = getattr(params, "denoiser", None)
    return denoiser.p is p if denoiser is not None else getattr(p, "sampler", None) is not None


def denoiser_of(params: Any, p: Any) -> Any:
    """The denoiser that calls back; before 1.8 the callback does not bring it along."""
    return getattr(params, "denoiser", None) or p.sampler.model_wrap_cfg


def renew_texts(webui: Webui, params: Any, denoiser: Any) -> None:
    """Let this call of the denoiser already see the text states that its sampler has now."""
    parser, given = webui.prompt_parser, denoiser.sampler.sampler_extra_args
    params.text_cond = parser.reconstruct_multicond_batch(given["cond"], denoiser.step)[1]
    params.text_uncond = parser.reconstruct_cond_batch(given["uncond"], denoiser.step)


def moment(params: Any, denoiser: Any, hires: bool) -> Moment:
    """The moment of a denoiser callback.

    The denoiser counts calls, of which second-order samplers make two a step. The webui's own `sampling_step` is no
    help: it is set in the middle of a step.
    """
    steps = max(int(denoiser.steps or params.total_sampling_steps or 1), 1)
    p = denoiser.p
    if ((hires and getattr(p, "hr_sampler_name", None)) or p.sampler_name) == ADAPTIVE:
        return Moment(_by_noise(params, denoiser, steps), steps, hires)
    calls = max(int(denoiser.total_steps or steps), 1)
    return Moment(min(denoiser.step * steps // calls, steps - 1), steps, hires)


def _by_noise(params: Any, denoiser: Any, steps: int) -> int:
    """The step at which an even division of the noise's logarithm stands."""
    sigmas = denoiser.inner_model.sigmas
    low, high = math.log(float(sigmas[0])), math.log(float(sigmas[-1]))
    share = (high - math.log(max(float(params.sigma.max()), 1e-6))) / (high - low)
    return min(max(int(share * steps), 0), steps - 1)
