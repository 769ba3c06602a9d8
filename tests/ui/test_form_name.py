"""Names of files to be made."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lib_lora.train.config import make_job
from lib_lora.ui.form_name import Names


def names(folder: Path, **settings: object) -> Names:
    kinds = {f"output.{kind}_folder": str(folder / kind) for kind in ("network", "embedding", "checkpoint")}
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return Names(make_job({"data.folder": "p", "data.trigger": "xulek", **kinds, **given}))


def put(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()


def test_free_names_go_on_counting(tmp_path: Path) -> None:
    for name in ("rex", "rex-2", "rex-3"):
        put(tmp_path / "network" / f"{name}.safetensors")
    assert names(tmp_path).free("rex") == "rex-4" == names(tmp_path).free("rex-2")
    assert names(tmp_path).free("fido") == "fido"
    assert names(tmp_path / "none").free("x") == "x"
    assert names(tmp_path).taken("REX") == "rex.safetensors"


def test_each_kind_of_file_is_looked_for_in_its_own_folder(tmp_path: Path) -> None:
    put(tmp_path / "network" / "rex.safetensors")
    put(tmp_path / "checkpoint" / "fido.ckpt")
    put(tmp_path / "network" / "bello-lora.safetensors")
    made = names(tmp_path, method__name="dreambooth", method__as_lora=8)
    assert (made.taken("rex"), made.taken("fido"), made.taken("bello")) == ("", "fido.ckpt", "bello-lora.safetensors")
    assert made.free("fido") == "fido-2"
    assert names(tmp_path, method__name="textual_inversion").free("rex") == "rex"


def test_files_called_by_their_words_keep_their_name(tmp_path: Path) -> None:
    put(tmp_path / "embedding" / "xulek.safetensors")
    made = names(tmp_path, method__name="pivotal_tuning")
    assert made.taken("rex") == "xulek.safetensors"
    assert made.free("rex") == "rex"
    put(tmp_path / "network" / "rex.safetensors")
    assert names(tmp_path, method__name="pivotal_tuning").free("rex") == "rex-2"


@given(st.text(max_size=20))
def test_any_text_can_be_asked_for(name: str) -> None:
    made = names(Path("nowhere"))
    assert made.free(name) == name and made.tags(name) == f"<lora:{name}:1>"
