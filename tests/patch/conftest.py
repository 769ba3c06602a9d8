"""Patchers that keep originals where the weights are, and in main memory."""

from __future__ import annotations

import pytest

from lib_lora.patch.patcher import Patcher
from tests.patch.bare import AWAY, HERE


@pytest.fixture(params=[HERE, AWAY], ids=["kept here", "kept in main memory"])
def patcher(request: pytest.FixtureRequest) -> Patcher:
    return Patcher(request.param)
