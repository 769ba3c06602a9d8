"""What a run leaves behind: every fact of its file by the name readers know, the card beside it, and nothing more."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
from PIL import Image
from safetensors.torch import load_file

from lib_lora.files.tensors import read_header
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.train.config import JobConfig, make_job
from lib_lora.train.engine import train
from lib_lora.train.methods.base import CHECKPOINT, NETWORK, Product
from lib_lora.train.sidecar import write_config
from tests.train.trained import CASES, Make

RANKED = ("lora", "locon", "loha", "lokr", "glora", "dylora")
# What ModelSpec 1.0.1 says must, should or can be there, as far as it is about networks
MODELSPEC = {
    *("sai_model_spec", "architecture", "implementation", "title", "resolution", "description", "date", "hash_sha256"),
    *("implementation_version", "thumbnail", "tags", "trigger_phrase", "prediction_type", "timestep_range"),
    "encoder_layer",
}


@pytest.mark.parametrize("name", CASES)
def test_alpha_is_always_there_and_never_zero(trained: Make, name: str) -> None:
    tensors, case = load_file(str(trained(name).file)), CASES[name]
    alphas = {key.removesuffix(".alpha"): float(value) for key, value in tensors.items() if key.endswith(".alpha")}
    norms = {key.split(".")[0] for key in tensors if key.endswith(".w_norm")}
    kind, layers = name.split()[0], {key.split(".")[0] for key in tensors} - norms
    if kind in RANKED:
        assert alphas.keys() == layers and all(alphas.values())
    if kind in ("oft", "boft"):  # there it is the constraint, 0 for none; the webui's and LyCORIS' readers want it
        limit = pytest.approx(case.args.get("constraint", 0.0))
        assert alphas.keys() == layers and all(alpha == limit for alpha in alphas.values())
    if name == "lora rslora":
        assert set(alphas.values()) == {2.0 * 4**0.5}


@pytest.mark.parametrize("name", ["lora dora", "locon dora"])
def test_dora_is_written_in_columns(trained: Make, name: str) -> None:
    tensors = load_file(str(trained(name).file))
    layers = {key.split(".")[0] for key in tensors}
    for layer in layers:
        down, magnitude = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.dora_scale"]
        assert magnitude.shape == (1, down.shape[1], *(1,) * (down.dim() - 2))


@dataclass
class Whole:
    """A run with everything on, on a base that is a file."""

    base: Path
    pictures: Path
    job: JobConfig
    file: Path
    metadata: dict[str, str]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    pictures, classes = folder / "2_sks toy", folder / "classes"
    for place, count in ((pictures, 3), (classes, 2)):
        place.mkdir()
        for number in range(count):
            Image.new("RGB", (160, 40) if number else (64, 64), (60 * number, 90, 200)).save(place / f"{number}.png")
            (place / f"{number}.txt").write_text(f"{place.name[0]} tag, red, no {number}", encoding="utf-8")
    job = make_job(
        {
            "base.checkpoint": str(tiny_checkpoint), "data.folder": str(pictures), "data.trigger": "sks",
            "data.class_word": "toy", "data.resolution": 128, "data.buckets": True, "data.bucket_low": 64,
            "prior.weight": 0.5, "prior.folder": str(classes), "prior.images": 2, "network.rank": 4,
            "network.alpha": 2.0, "network.train_text_encoder": True, "optimizer.lr": 1e-3, "optimizer.te_lr": 1e-4,
            "optimizer.schedule": "cosine", "optimizer.warmup_steps": 1, "optimizer.args": ("eps=1e-7",),
            "training.epochs": 2, "training.batch_size": 2, "training.seed": 7, "training.clip_skip": 2,
            "training.offset_noise": 0.05, "output.folder": str(folder / "runs"), "output.name": "whole",
            "output.network_folder": str(folder / "networks"), "output.save_every": 2, "output.keep_last": 2,
            "output.sample_every": 3, "output.sample_steps": 1, "output.sample_prompts": ("a sks toy",),
        }
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        file = train(job, load_checkpoint(tiny_checkpoint)).file
    return Whole(tiny_checkpoint, pictures, job, file, dict(read_header(file).metadata))


def test_what_kohya_names(whole: Whole) -> None:
    content = whole.base.read_bytes()
    steps = whole.metadata["ss_steps"]
    expected = {
        "ss_output_name": "whole",
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_network_args": "{}",
        "ss_sd_model_name": "tiny.safetensors",
        "ss_sd_model_hash": hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
        "ss_new_sd_model_hash": hashlib.sha256(content).hexdigest(),
        "ss_clip_skip": "2",
        "ss_seed": "7",
        "ss_max_train_steps": steps,
        "ss_epoch": "2",
        "ss_num_epochs": "2",
        "ss_learning_rate": "0.001", "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "0.0001", "ss_lr_scheduler": "cosine",
        "ss_lr_warmup_steps": "1", "ss_optimizer": "AdamW(eps=1e-7)",
        "ss_batch_size_per_device": "2", "ss_total_batch_size": "2",
        "ss_gradient_accumulation_steps": "1", "ss_gradient_checkpointing": "False",
        "ss_mixed_precision": "no", "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "0.05", "ss_prior_loss_weight": "0.5",
        "ss_resolution": "(128, 128)", "ss_enable_bucket": "True",
        "ss_num_train_images": "6", "ss_num_reg_images": "2",
        "ss_training_started_at": "1700000000.0",
        "ss_training_finished_at": "1700000000.0",
    }  # fmt: skip
    assert {name: whole.metadata.get(name) for name in expected} == expected
    assert int(steps) > 2
    assert all(isinstance(value, str) and value for value in whole.metadata.values())


def as_the_webui_reads(metadata: dict[str, str]) -> dict[str, Any]:
    """Its reader takes whatever begins with a brace for JSON."""
    return {name: json.loads(value) if value[0] == "{" else value for name, value in metadata.items()}


def test_what_the_webuis_card_shows(whole: Whole) -> None:
    shown = as_the_webui_reads(whole.metadata)
    assert shown["ss_tag_frequency"] == {"2_sks toy": {"2 tag": 3, "red": 3, "no 0": 1, "no 1": 1, "no 2": 1}}
    assert sum(int(about["img_count"]) for about in shown["ss_dataset_dirs"].values()) == 3
    assert shown["ss_dataset_dirs"] == {"2_sks toy": {"n_repeats": 2, "img_count": 3}}
    assert shown["ss_reg_dataset_dirs"] == {"classes": {"n_repeats": 1, "img_count": 2}}
    buckets = shown["ss_bucket_info"]["buckets"].values()
    assert {tuple(bucket["resolution"]): bucket["count"] for bucket in buckets} == {(128, 128): 2, (256, 64): 4}
    assert float(shown["ss_training_started_at"]) == 1700000000
    assert not any(isinstance(shown[name], dict) for name in ("ss_output_name", "ss_sd_model_name", "ss_clip_skip"))


def test_hashes_are_those_that_readers_compute(whole: Whole) -> None:
    content = whole.file.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert whole.metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert whole.metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    told = {name: value for name, value in whole.metadata.items() if name.startswith("ss_")}
    plain = safetensors.torch.save(load_file(str(whole.file)), told)
    legacy = hashlib.sha256(plain[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert whole.metadata["sshs_legacy_hash"] == legacy


def test_modelspec(whole: Whole) -> None:
    spec = {n.partition(".")[2]: value for n, value in whole.metadata.items() if n.startswith("modelspec.")}
    assert spec.keys() == MODELSPEC
    expected = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1/lora",
        "title": "whole",
        "resolution": "128x128",
        "date": "2023-11-14T22:13:20+00:00",
        "prediction_type": "epsilon",
        "timestep_range": "0,999",
        "trigger_phrase": "sks toy",
        "encoder_layer": "2",
        "tags": "toy, network, lora",
    }
    assert {name: spec[name] for name in expected} == expected
    head, _, data = spec["thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.format == "JPEG" and small.size == (128, 128)


def test_the_card_has_its_facts_and_its_picture(whole: Whole) -> None:
    card = json.loads(whole.file.with_suffix(".json").read_text(encoding="utf-8"))
    assert card == {
        "description": f"network, 3 pictures, {whole.metadata['ss_steps']} steps on tiny",
        "sd version": "SD1",
        "activation text": "sks toy",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": "",
    }
    samples = whole.file.parents[1] / "runs" / "whole" / "samples"
    assert whole.file.with_suffix(".png").read_bytes() == max(samples.glob("*-0.png")).read_bytes()
    assert sorted(path.name for path in whole.file.parent.iterdir()) == ["whole.json", "whole.png", "whole.safetensors"]


def test_files_on_the_way(whole: Whole) -> None:
    """Every second step but the last, and only the latest two of them."""
    steps = int(whole.metadata["ss_steps"])
    due = list(range(2, steps, 2))[-2:]
    folder = whole.file.parents[1] / "runs" / "whole" / "checkpoints"
    networks = sorted(folder.glob("whole-*.safetensors"))
    assert [path.name for path in networks] == [f"whole-{step:06d}.safetensors" for step in due]
    for step, path in zip(due, networks):
        metadata = read_header(path).metadata
        assert metadata["ss_steps"] == str(step)
        assert ("modelspec.thumbnail" in metadata) == (step >= 3)


def small(pictures: Path, folder: Path, **changes: Any) -> JobConfig:
    """One step on two pictures."""
    values = {
        "data.folder": str(pictures), "data.trigger": "sks", "data.resolution": 64, "network.rank": 2,
        "training.steps": 1, "training.batch_size": 2, "output.folder": str(folder / "runs"), "output.name": "small",
        "output.network_folder": str(folder / "networks"), "output.sample_every": 1, "output.sample_steps": 1,
    }  # fmt: skip
    return make_job({**values, **{name.replace("__", "."): value for name, value in changes.items()}})


def test_several_concepts_and_nothing_of_the_users_overwritten(
    tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    tables = ({"trigger": "sks", "class_word": "toy"}, {"trigger": "zwx", "class_word": "toy"}, {"trigger": "sks"})
    concepts = [{"folder": str(pictures), **table} for table in tables]
    job = small(pictures, tmp_path, concept=concepts, data__class_word="toy")
    networks = tmp_path / "networks"
    networks.mkdir()
    (networks / "small.preview.png").write_bytes(b"mine")
    file = train(job, tiny_model).file
    assert json.loads((networks / "small.json").read_text())["activation text"] == "sks toy, zwx toy"
    metadata = read_header(file).metadata
    assert metadata["modelspec.trigger_phrase"] == "sks toy, zwx toy"
    assert not (networks / "small.png").exists(), "the webui would show it in place of the user's own"
    (networks / "other.json").write_text("{}", encoding="utf-8")
    (networks / "other.png").write_bytes(b"mine too")
    train(small(pictures, tmp_path, output__name="other"), tiny_model)
    assert (networks / "other.json").read_text(encoding="utf-8") == "{}"
    assert (networks / "other.png").read_bytes() == b"mine too"
    assert (networks / "small.preview.png").read_bytes() == b"mine"


def test_folders_that_say_the_trigger_reach_the_card_if_there_is_one(
    tiny_model: DiffusersModel, tmp_path: Path
) -> None:
    for name in ("1_zwx cat", "1_sks dog"):
        (tmp_path / "all" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(tmp_path / "all" / name / "a.png")
    file = train(small(tmp_path / "all", tmp_path, data__trigger="", output__sample_every=0), tiny_model).file
    assert json.loads(file.with_suffix(".json").read_text())["activation text"] == "sks dog, zwx cat"
    assert file.with_suffix(".png").is_file(), "drawn at the end, since nothing was drawn before"
    assert "modelspec.thumbnail" in read_header(file).metadata
    alone = small(tmp_path / "all", tmp_path, output__name="alone", output__sample_every=0, output__sidecar=False)
    file = train(alone, tiny_model).file
    assert "modelspec.thumbnail" not in read_header(file).metadata
    assert not file.with_suffix(".png").exists() and not file.with_suffix(".json").exists()


def test_equal_runs_make_equal_files_where_the_time_is_given(
    tiny_model: DiffusersModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [train(small(pictures, tmp_path / place), tiny_model).file for place in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].with_suffix(".png").read_bytes() == files[1].with_suffix(".png").read_bytes()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    now = read_header(train(small(pictures, tmp_path / "c"), tiny_model).file).metadata
    given = read_header(files[0]).metadata
    differing = {name for name in given.keys() | now.keys() if given.get(name) != now.get(name)}
    times = {"ss_training_started_at", "ss_training_finished_at", "modelspec.date"}
    assert times <= differing <= times | {"sshs_legacy_hash"}
    assert float(now["ss_training_started_at"]) < float(now["ss_training_finished_at"])


def test_a_full_fine_tune_is_no_lora_and_what_is_extracted_is_one(
    tiny_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    job = small(
        pictures, tmp_path, method__name="dreambooth", method__as_lora=3, network__rank=16, output__sample_every=0,
        output__sidecar=False,
    )  # fmt: skip
    file = train(job, load_checkpoint(tiny_checkpoint)).file
    assert read_header(file).metadata["modelspec.architecture"] == "stable-diffusion-v1"
    metadata = read_header(tmp_path / "networks" / "small-lora.safetensors").metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3.0")
    assert (metadata["ss_network_module"], metadata["ss_network_args"]) == ("networks.lora", "{}")


def test_methods_with_networks_of_their_own_say_which(
    tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    more = {"method__name": "custom_diffusion", "data__trigger": "<cat>", "data__class_word": "cat"}
    file = train(small(pictures, tmp_path, output__sample_every=0, output__sidecar=False, **more), tiny_model).file
    metadata = read_header(file).metadata
    assert json.loads(metadata["ss_network_args"])["algo"] == "full"
    assert metadata["modelspec.tags"] == "cat, custom diffusion, full"
    alone = read_header(file.parents[1] / "runs" / "small" / "cat.safetensors").metadata
    assert alone["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert alone["modelspec.trigger_phrase"] == "<cat> cat"


def test_a_checkpoint_takes_its_bases_config_along(tmp_path: Path) -> None:
    base, made = tmp_path / "base.safetensors", tmp_path / "made.safetensors"
    base.with_suffix(".yaml").write_text("model: {}")
    session: Any = SimpleNamespace(model=SimpleNamespace(source=base))
    write_config(session, Product(NETWORK, made.name), made)
    assert not made.with_suffix(".yaml").exists()
    write_config(session, Product(CHECKPOINT, made.name), made)
    assert made.with_suffix(".yaml").read_text() == "model: {}"
    made.with_suffix(".yaml").write_text("the user's own")
    write_config(session, Product(CHECKPOINT, made.name), made)
    assert made.with_suffix(".yaml").read_text() == "the user's own"
