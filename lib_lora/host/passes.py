"""The sampling passes that go on. There may be several: extensions draw pictures while another is being drawn."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora.host import sampling
from lib_lora.prompt import Moment, NetworkRequest


@dataclass(frozen=True)
class Pass:
    """What a picture asks for while it is sampled, from which moment on, and its seed."""

    picture: weakref.ReferenceType[Any]
    requests: tuple[NetworkRequest, ...]
    start: Moment
    seed: int

    @classmethod
    def of(cls, p: Any, requests: Sequence[NetworkRequest], hires: bool) -> Pass:
        """The pass that begins now. The picture is held weakly: nobody tells the end of one that failed."""
        seed = int((getattr(p, "seeds", None) or [0])[0])
        return cls(weakref.ref(p), tuple(requests), sampling.start_of(p, hires), seed)

    @property
    def p(self) -> Any:
        """The picture, None if it is gone."""
        return self.picture()

    @property
    def scheduled(self) -> bool:
        """Whether its strengths change from step to step."""
        return any(request.scheduled for request in self.requests)


class Passes:
    """One pass of each picture that is on its way, and which of them the model was last made ready for."""

    def __init__(self) -> None:
        self._going: list[Pass] = []
        self._ready: tuple[Pass, str] | None = None

    def begin(self, one: Pass) -> None:
        """From now on this one is its picture's."""
        self.end(one.p)
        self._going.append(one)

    def ready(self, one: Pass, identity: str) -> None:
        """Note that the model of this identity carries what `one` asks for."""
        self._ready = one, identity

    def is_ready(self, one: Pass, identity: str) -> bool:
        """Whether that is so still, as far as we had a hand in it."""
        return self._ready is not None and self._ready[0] is one and self._ready[1] == identity

    def end(self, p: Any) -> None:
        """This picture is done."""
        self._going = [one for one in self._going if one.p is not None and one.p is not p]

    def clear(self) -> None:
        """No picture is ours."""
        self._going, self._ready = [], None

    def others(self, p: Any) -> bool:
        """Whether a picture other than this one is on its way."""
        return any(one.p is not None and one.p is not p for one in self._going)

    def drawn(self, params: Any) -> Pass | None:
        """The pass that a denoiser callback belongs to: before 1.8 the latest that can be, since 1.8 the very one."""
        alive = ((one, one.p) for one in reversed(self._going))
        return next((one for one, p in alive if p is not None and sampling.is_drawn(p, params)), None)
