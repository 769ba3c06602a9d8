"""What became of each network: told to the user in one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkReport:
    """One network: layers applied, names the model does not have, and layers that could not be merged, with the why."""

    name: str
    applied: int
    unmatched: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def line(self) -> str:
        """E.g. `cat: 192 of 196 layers applied; 4 not in this model (first: te2:...)`."""
        total = self.applied + len(self.unmatched) + len(self.mismatched)
        if self.applied == total:
            return f"{self.name}: {total} layers applied"
        text = f"{self.name}: {self.applied} of {total} layers applied"
        if self.unmatched:
            text += f"; {len(self.unmatched)} not in this model (first: {self.unmatched[0]})"
        if self.mismatched:
            text += f"; {len(self.mismatched)} do not fit (first: {self.mismatched[0]})"
        return text


@dataclass(frozen=True)
class PatchReport:
    """All networks of a request, and messages about those that could not be read at all."""

    networks: tuple[NetworkReport, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every layer of every network was applied."""
        return not self.errors and not any(n.unmatched or n.mismatched for n in self.networks)

    def summary(self) -> str:
        """One line per network, then one per error; empty if nothing was asked for."""
        return "\n".join([*(network.line() for network in self.networks), *self.errors])
