"""Fixtures: tiny models of SD2 and SDXL, native and as files, made once: importing their classes takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel
from tests.models import native
from tests.models.native import Native

__all__ = ["sd2", "sd2_file", "sd2_model", "sdxl", "sdxl_file", "sdxl_model"]


@pytest.fixture(scope="session")
def sd2() -> Native:
    return native.make("sd2")


@pytest.fixture(scope="session")
def sdxl() -> Native:
    return native.make("sdxl")


@pytest.fixture(scope="session")
def sd2_file(sd2: Native, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd2.save(tmp_path_factory.mktemp("native") / "sd2.safetensors")


@pytest.fixture(scope="session")
def sdxl_file(sdxl: Native, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl.save(tmp_path_factory.mktemp("native") / "sdxl.safetensors")


@pytest.fixture(scope="session")
def sd2_model(sd2_file: Path) -> DiffusersModel:
    return load_checkpoint(sd2_file, prediction_type="v_prediction")


@pytest.fixture(scope="session")
def sdxl_model(sdxl_file: Path) -> DiffusersModel:
    return load_checkpoint(sdxl_file)
