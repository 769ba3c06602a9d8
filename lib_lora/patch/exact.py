"""Sums as exact as their dtype, whatever surrounds the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST = ("cpu", "cuda", "xpu")


@contextmanager
def exact_sums(devices: Iterable[torch.device]) -> Iterator[None]:
    """In here float32 products are float32: no autocast, no TF32, no bfloat16 passes; and no gradients are recorded.

    The webui activates networks inside `torch.autocast` and allows TF32, either of which costs a delta 13 or more of
    its 24 bits. Inference mode is left too, as tensors made in it could not be given to ordinary parameters. What
    autocast has kept of the weights as they were before is dropped at the end.
    """
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in {device.type for device in devices} & set(AUTOCAST):
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.clear_autocast_cache()
