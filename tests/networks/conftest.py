"""Prints the worst error of every network type against every reference, once all tests have run."""

from __future__ import annotations

from typing import Any

from tests.networks.matrix import WORST


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table type x reference; nothing if none of these tests ran."""
    if WORST:
        terminalreporter.section("worst relative error of network types")
    for (kind, reference), worst in sorted(WORST.items()):
        terminalreporter.write_line(f"{kind:10} {reference:30} {worst:.1e}")
