"""The tiny models of SD2 and SDXL, for the whole room."""

from __future__ import annotations

from tests.models.files import *  # noqa: F403 - fixtures are found by their names here
