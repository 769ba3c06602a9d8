"""The Train tab's service in the webui: what it refuses before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora.errors import BadConfig
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.training import _require_allowed, defaults
from lib_lora.host.webui import WebuiHost
from lib_lora.train.config import make_job


@pytest.fixture
def host(webui: Any) -> WebuiHost:
    return WebuiHost(webui, BuiltinLora(webui))


@pytest.mark.parametrize("option", ["disable_extension_access", "hide_ui_dir_config"])
def test_an_exposed_webui_trains_only_on_folders_of_its_own(
    webui: Any, host: WebuiHost, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, option: str
) -> None:
    ours = {**defaults(host), "data.folder": str(tmp_path / "pictures")}
    inside, elsewhere = make_job(ours), str(tmp_path_factory.mktemp("written"))
    outside = make_job({"data.folder": str(tmp_path_factory.mktemp("elsewhere"))})
    dotted = make_job({"data.folder": str(tmp_path / ".." / "elsewhere")})
    _require_allowed(host, outside)
    setattr(webui.shared.cmd_opts, option, True)
    _require_allowed(host, inside)
    written = [make_job({**ours, key: elsewhere}) for key in ("output.folder", "output.network_folder")]
    for job in (outside, dotted, *written):
        with pytest.raises(BadConfig, match="--listen"):
            _require_allowed(host, job)


def test_jobs_of_this_host_write_where_the_tag_looks(host: WebuiHost, tmp_path: Path) -> None:
    values = defaults(host)
    assert Path(values["output.network_folder"]) == tmp_path / "Lora"
    assert Path(values["output.folder"]).is_relative_to(tmp_path)
