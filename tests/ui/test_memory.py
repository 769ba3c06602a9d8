"""How much memory is in use, with a GPU and without."""

from __future__ import annotations

import mmap

import pytest
import torch

from lib_lora.ui.memory import memory, own_memory


def test_without_a_gpu_it_is_the_processes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    used, total = memory()
    assert used is not None and total is None and used == pytest.approx(own_memory(), rel=0.2)
    size = 64 << 20
    with mmap.mmap(-1, size) as held:  # fresh pages: a tensor may take what the process has and does not use
        held.write(b"x" * size)
        assert (own_memory() or 0) - used > size // 2


def test_of_a_gpu_it_is_what_all_programs_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, 8 << 30))
    assert memory() == (5 << 30, 8 << 30)

    def failed() -> tuple[int, int]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", failed)
    assert memory() == (None, None)


def test_a_look_does_not_take_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not used it yet would hold hundreds of megabytes from then on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: pytest.fail("asked"))
    assert memory()[1] is None
