"""How much memory is in use: the GPU's, or the process's own."""

from __future__ import annotations

from pathlib import Path


def memory() -> tuple[int | None, int | None]:
    """Bytes in use and bytes there are: of the GPU, by all programs, or without one of this process and None."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        try:
            free, total = torch.cuda.mem_get_info()
        except RuntimeError:  # a GPU that failed; the run's own message says so
            return None, None
        return total - free, total
    return own_memory(), None


def own_memory() -> int | None:
    """Bytes of this process in main memory; None where that cannot be told."""
    import os

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)
