"""Kinds of training from job to file: what each writes, that the file means what was trained, and that it resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from lib_lora.errors import BadConfig, BadDataset, Cancelled
from lib_lora.files.codec import read_network
from lib_lora.models.checkpoint import load_checkpoint
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.ports import Conditioning
from lib_lora.tools.merge import MergeJob, NetworkUse, merge
from lib_lora.train.attach import attach
from lib_lora.train.config import JobConfig
from lib_lora.train.engine import train
from lib_lora.train.frozen import frozen
from lib_lora.train.methods.hypernetwork import HypernetworkMethod
from lib_lora.train.methods.lcm import Course
from lib_lora.train.methods.registry import METHODS, method_of
from lib_lora.train.plan import Visit
from lib_lora.train.sections import METHODS as NAMES
from lib_lora.train.session import Session, prepare

Make = Callable[..., JobConfig]
SETTINGS: dict[str, dict[str, Any]] = {
    "network": {},
    "textual_inversion": {"data__trigger": "<cat>", "data__class_word": "cat"},
    "pivotal_tuning": {"data__trigger": "<cat>", "data__class_word": "cat"},
    "custom_diffusion": {"data__trigger": "<cat>", "data__class_word": "cat"},
    "hypernetwork": {},
    "dreambooth": {"method__as_lora": 4},
    "lcm": {},
    "slider": {
        "method__slider_positive": "old cat",
        "method__slider_negative": "young cat",
        "method__slider_steps": 2,
        "data__resolution": 128,
    },
    "image_slider": {},
}


def output(model: DiffusersModel, prompt: str = "a red toy") -> torch.Tensor:
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([500]), model.encode_text([prompt]))


def job_of(make: Make, pictures: Path, name: str, **changes: Any) -> JobConfig:
    values = {"method__name": name, "training__steps": 2, "output__sidecar": False, **SETTINGS[name], **changes}
    if name == "image_slider":
        values["method__pairs_after"] = str(pictures)
    return make(**values)


def test_every_declared_method_is_there() -> None:
    assert tuple(METHODS) == NAMES


@pytest.mark.parametrize("name", [n for n in NAMES if n != "network"])
def test_a_run_writes_its_products_and_resumes_bit_for_bit(
    make: Make, tiny_checkpoint: Path, pictures: Path, name: str
) -> None:
    model = load_checkpoint(tiny_checkpoint)
    job = job_of(make, pictures, name)
    before, events = output(model), list[dict[str, Any]]()
    whole = train(job, model, on_event=events.append)
    assert torch.equal(output(model), before)
    products = method_of(name).products(job, job.output.name)
    assert [e["path"] for e in events if e["type"] == "saved"] == [str(whole.folder / p.name) for p in products]
    assert all((whole.folder / p.name).stat().st_size > 0 for p in products)
    stopped = list[dict[str, Any]]()
    with pytest.raises(Cancelled, match="step 1 of 2"):
        train(job, model, on_event=stopped.append, cancel=lambda: any(e["type"] == "step" for e in stopped))
    resumed = train(job, model, resume=stopped[0]["folder"])
    for product in products:
        assert (resumed.folder / product.name).read_bytes() == (whole.folder / product.name).read_bytes()


def trained(session: Session, *, steps: int = 2) -> None:
    """So many steps, without files."""
    with frozen(session.model, checkpointing=False):  # type: ignore[arg-type]
        for step in range(steps):
            session.backward(step)
            session.unscaled_norm()
            assert session.update(finite=True)


def test_an_embedding_file_holds_the_new_words_vectors(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    for form in ("safetensors", "pt"):
        job = job_of(
            make, pictures, "textual_inversion", method__embedding_format=form, method__tokens=3, method__token_lr=0.1,
            output__embedding_folder=str(tmp_path / form),
        )  # fmt: skip
        file = train(job, tiny_model).file
        assert file == tmp_path / form / f"toy.{form}"
        if form == "pt":
            record = torch.load(file, weights_only=True)
            (vectors,) = record["string_to_param"].values()
            assert (record["name"], record["step"], record["string_to_token"]) == ("toy", 2, {"*": 265})
        else:
            ((name, vectors),) = load_file(str(file)).items()
            assert name == "emb_params"
        begin = tiny_model.token_vectors("cat")["te1"]
        assert vectors.shape == (3, begin.shape[1])
        assert not torch.allclose(vectors, begin.expand(3, -1), atol=1e-2)
    with pytest.raises(BadConfig, match="names no new word"):
        prepare(job_of(make, pictures, "textual_inversion", data__trigger=" "), tiny_model, tmp_path)


def test_pivotal_tuning_bundles_the_word_and_writes_it_by_its_own_name(
    make: Make, tiny_model: DiffusersModel, pictures: Path
) -> None:
    result = train(job_of(make, pictures, "pivotal_tuning", method__tokens=2, method__token_lr=0.1), tiny_model)
    network = read_network(result.file)
    alone = load_file(str(result.folder / "cat.safetensors"))["emb_params"]
    assert network.parts() == {"unet": 192}
    assert torch.equal(network.embeddings["<cat>"]["clip_l"], alone)
    prompt = "a <cat> toy"
    plain = output(tiny_model, prompt)
    with attach(tiny_model, network.layers), tiny_model.extra_tokens({"<cat>": {"te1": alone}}):
        assert not torch.allclose(output(tiny_model, prompt), plain, atol=1e-4)


def test_custom_diffusion_trains_keys_and_values_of_cross_attention_only(
    make: Make, tiny_model: DiffusersModel, pictures: Path
) -> None:
    network = read_network(train(job_of(make, pictures, "custom_diffusion"), tiny_model).file)
    assert len(network.layers) == 32
    assert all(key.path.endswith((".attn2.to_k", ".attn2.to_v")) for key in network.layers)
    assert {layer.kind for layer in network.layers.values()} == {"full"}


@pytest.mark.parametrize("norm", [False, True])
def test_a_hypernetwork_file_means_what_was_trained(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path, norm: bool
) -> None:
    job = job_of(
        make, pictures, "hypernetwork", method__hyper_layers="1, 1.5, 2, 1", method__hyper_activation="relu",
        method__hyper_norm=norm, method__hyper_dropout=0.1, optimizer__lr=0.05,
    )  # fmt: skip
    session = prepare(job, tiny_model, tmp_path)
    trained(session)
    HypernetworkMethod().write(session, tmp_path, HypernetworkMethod().products(job, "hyper"), 2)
    with session.attached():
        expected = output(tiny_model)
    record = torch.load(tmp_path / "hyper.pt", weights_only=True)
    assert (record["layer_structure"], record["dropout_structure"]) == ([1, 1.5, 2, 1], [0, 0.1, 0.1, 0])
    # The webui's own reading of the file, written out: x + net(x) before to_k and to_v of equal width
    for width in (w for w in record if isinstance(w, int)):
        for which, state in zip("kv", record[width]):
            net = _webui_net(width, record)
            net.load_state_dict({n.removeprefix("linear."): t for n, t in state.items()})
            net.eval()
            for key, module in tiny_model.modules_by_key().items():
                if key.path.endswith(f".to_{which}") and module.weight.shape[1] == width:  # type: ignore[union-attr,index]
                    handle = module.register_forward_pre_hook(lambda m, a, net=net: (a[0] + net(a[0]), *a[1:]))
                    hooks.append(handle)
    try:
        got = output(tiny_model)
    finally:
        while hooks:
            hooks.pop().remove()
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(output(tiny_model), expected, atol=1e-3)


hooks: list[Any] = []


def _webui_net(width: int, record: dict[Any, Any]) -> nn.Sequential:
    structure, layers = record["layer_structure"], list[nn.Module]()
    for i in range(len(structure) - 1):
        layers.append(nn.Linear(int(width * structure[i]), int(width * structure[i + 1])))
        if i < len(structure) - 2:
            layers.append({"relu": nn.ReLU}[record["activation_func"]]())
        if record["is_layer_norm"]:
            layers.append(nn.LayerNorm(int(width * structure[i + 1])))
        if record["dropout_structure"][i + 1] > 0:
            layers.append(nn.Dropout(record["dropout_structure"][i + 1]))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", [False, True])
def test_a_new_hypernetwork_changes_next_to_nothing(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path, norm: bool
) -> None:
    session = prepare(job_of(make, pictures, "hypernetwork", method__hyper_norm=norm), tiny_model, tmp_path)
    before = output(tiny_model)
    with session.attached():
        after = output(tiny_model)
    assert 0 < float((after - before).norm() / before.norm()) < 0.01


def test_a_hypernetworks_shape_is_checked(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    for text in ("2, 1", "1", "one, 1", "1, 0, 1"):
        with pytest.raises(BadConfig, match="hyper_layers"):
            prepare(job_of(make, pictures, "hypernetwork", method__hyper_layers=text), tiny_model, tmp_path)


def test_dreambooth_writes_the_base_plus_what_was_trained(
    make: Make, tiny_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(tiny_checkpoint)
    job = job_of(
        make, pictures, "dreambooth", network__train_text_encoder=True, method__as_lora=512, optimizer__ema=0.5,
        data__resolution=128, output__checkpoint_folder=str(tmp_path / "models"),
    )  # fmt: skip
    session = prepare(job, model, tmp_path)
    trained(session)
    with session.best(), session.attached():
        expected = output(model)
    file = train(job, model).file
    assert file == tmp_path / "models" / "toy.safetensors"
    file.with_suffix(".yaml").write_bytes(tiny_checkpoint.with_suffix(".yaml").read_bytes())
    tuned = load_checkpoint(file)
    assert torch.allclose(output(tuned), expected, atol=1e-5)
    assert not torch.allclose(expected, output(model), atol=1e-3)
    before, after = load_file(str(tiny_checkpoint)), load_file(str(file))
    assert before.keys() == after.keys()
    untouched = {n for n in before if torch.equal(before[n], after[n])}
    assert all(n in untouched for n in before if n.startswith("first_stage_model."))
    norms = {n for n in before if n.startswith("cond_stage_model.") and "layer_norm" in n}
    assert norms <= untouched  # training.freeze_norms
    trained_ones = {n for n in before if n.startswith(("model.", "cond_stage_model.transformer.text_model.encoder"))}
    assert sorted((trained_ones - norms) & untouched) == []

    # The LoRA of full rank leads to the same weights, but for norms and biases
    run = Path(job.output.folder) / "toy"
    merge(MergeJob(tiny_checkpoint, [NetworkUse(run / "toy-lora.safetensors")], tmp_path / "merged.safetensors"))
    merged = load_file(str(tmp_path / "merged.safetensors"))
    matrices = [n for n in trained_ones if before[n].dim() > 1]
    assert matrices
    assert max(float((merged[n] - after[n]).abs().max()) for n in matrices) < 1e-6
    assert 0 < float(read_network(run / "toy-lora.safetensors").metadata["lorakit_residual"]) < 1


def test_lcm_agrees_with_diffusers_schedulers(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    from diffusers import DDIMScheduler, LCMScheduler

    session = prepare(job_of(make, pictures, "lcm", method__lcm_steps=20), tiny_model, tmp_path)
    course = Course(session, [Visit(0, step, 0) for step in range(12)])
    assert int(course.start.min()) >= 49 and int(course.start.max()) <= 999
    assert (course.start - course.end).unique().tolist() in ([50], [49, 50])
    assert float(course.cfg.min()) >= 3 and float(course.cfg.max()) <= 15
    bars = tiny_model.alphas_cumprod()
    betas = (1 - bars / torch.cat([torch.ones(1, dtype=bars.dtype), bars[:-1]])).numpy()
    source = torch.Generator().manual_seed(3)
    noisy, eps = (torch.randn(12, 4, 8, 8, generator=source, dtype=torch.float64) for _ in range(2))
    theirs = LCMScheduler(trained_betas=betas, original_inference_steps=20)
    x0 = course.split(eps, noisy, course.start)[1]
    for row in range(12):
        skip, out = theirs.get_scalings_for_boundary_condition_discrete(int(course.start[row]))
        wanted = skip * noisy[row] + out * x0[row]
        assert torch.allclose(course.consistent(eps, noisy, course.start)[row], wanted, atol=1e-10)
    ddim = DDIMScheduler(trained_betas=betas, clip_sample=False, set_alpha_to_one=False, steps_offset=0)
    ddim.set_timesteps(20)
    ddim.alphas_cumprod = ddim.alphas_cumprod.double()
    for row in range(12):
        if int(course.start[row]) > 49:  # at the last step diffusers ends at its own final alpha
            wanted = ddim.step(eps[row], int(course.start[row]), noisy[row]).prev_sample
            got = course.mix(x0[row : row + 1], eps[row : row + 1], course.end.expand(12)[row : row + 1])
            assert torch.allclose(got[0], wanted, atol=1e-6)


def test_lcm_learns_to_agree_with_itself(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    job = job_of(make, pictures, "lcm", training__steps=8, optimizer__lr=5e-3)
    session = prepare(job, tiny_model, tmp_path)
    assert not any(name.startswith("network/te") for name in session.named_parameters())
    visits = [Visit(i % 2, 900 + i, 0) for i in range(8)]

    def loss() -> float:
        with torch.no_grad(), session.attached():
            return float(session.losses(visits).mean())

    before = loss()
    trained(session, steps=8)
    assert loss() < before


def test_a_slider_moves_the_output_both_ways(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    job = job_of(
        make, pictures, "slider", method__slider_target="a cat", method__slider_preserve=("red", "blue"),
        training__steps=10, training__batch_size=1, optimizer__lr=2e-2, data__resolution=128,
    )  # fmt: skip
    session = prepare(job, tiny_model, tmp_path)
    trained(session, steps=10)
    source = torch.Generator().manual_seed(5)
    noisy, times = torch.randn(2, 4, 16, 16, generator=source), torch.tensor([400, 800])

    def said(prompt: str) -> torch.Tensor:
        with torch.no_grad():
            return tiny_model.predict(noisy, times, tiny_model.encode_text([prompt] * 2))

    plain = said("a cat")
    wanted = sum((said(f"old cat, {w}") - said(f"young cat, {w}") for w in ("red", "blue")), torch.zeros(())).flatten()
    moved = {}
    for strength in (1.0, -1.0):
        with session.attached(strength):
            moved[strength] = (said("a cat") - plain).flatten()
    cosine = nn.functional.cosine_similarity
    assert float(cosine(moved[1.0], wanted, dim=0)) > 0.2
    assert float(cosine(moved[-1.0], wanted, dim=0)) < -0.2
    with pytest.raises(BadConfig, match="no direction"):
        values = {"method__slider_positive": "", "method__slider_negative": ""}
        prepare(job_of(make, pictures, "slider", **values), tiny_model, tmp_path)


def test_an_image_slider_learns_the_difference_of_its_pairs(
    make: Make, tiny_model: DiffusersModel, pictures: Path, tmp_path: Path
) -> None:
    after = tmp_path / "after"
    after.mkdir()
    job = make(method__name="image_slider", method__pairs_after=str(after), training__steps=2)
    with pytest.raises(BadDataset, match=r"2 pictures of data.folder have none .* first: 'one.png'"):
        prepare(job, tiny_model, tmp_path)
    for name in ("one", "two"):
        Image.new("RGB", (96, 64), "green").save(after / f"{name}.jpg")
    session = prepare(job, tiny_model, tmp_path)
    assert [item.path.name for item in session.dataset.items] == ["one.png", "two.png", "one.jpg", "two.jpg"]
    seen: list[tuple[float, list[int]]] = []
    honest = session.latents.batch
    session.latents.batch = lambda visits: seen.append((session.strength, [v.index for v in visits])) or honest(visits)  # type: ignore[method-assign,func-returns-value]
    trained(session, steps=1)
    assert [strength for strength, _ in seen] == [1.0, -1.0]
    assert [index - 2 for index in seen[0][1]] == seen[1][1]


def test_prior_preservation_adds_the_class_pictures_loss(
    make: Make, tiny_model: DiffusersModel, tmp_path: Path
) -> None:
    classes = tmp_path / "class"
    classes.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), ("green", "black", "white")[number]).save(classes / f"{number}.png")
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        job = make(
            data__class_word="toy", prior__weight=weight, prior__folder=str(classes), prior__images=3,
            training__steps=1, training__min_snr_gamma=5.0,
        )  # fmt: skip
        session = prepare(job, tiny_model, tmp_path)
        batches = session.plan.batches(0)
        assert [visit.prior for visit in batches[0]] == [False, False, *[True, True][: 2 if weight else 0]]
        with frozen(tiny_model, checkpointing=False):
            losses[weight] = float(session.backward(0))
        if weight:
            with torch.no_grad(), session.attached():
                each = session.losses(batches[0])
            assert losses[weight] == pytest.approx(float(each[:2].mean() + weight * each[2:].mean()), rel=1e-4)
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-3)


def test_text_encoders_stand_still_after_their_share_of_the_run(
    make: Make, tiny_model: DiffusersModel, tmp_path: Path
) -> None:
    job = make(network__train_text_encoder=True, training__te_fraction=0.5, training__steps=4)
    session = prepare(job, tiny_model, tmp_path)
    states, moving = [], []
    with frozen(tiny_model, checkpointing=False):
        for step in range(4):
            session.backward(step)
            moving.append(session.text_is_trained())
            session.update(finite=True)
            states.append({n: p.detach().clone() for n, p in session.named_parameters().items()})
    assert moving == [True, True, False, False]
    text = [name for name in states[0] if "/te1:" in name and "up" in name]
    assert text and all(torch.equal(states[1][name], states[3][name]) for name in text)
    assert not all(torch.equal(states[0][name], states[1][name]) for name in text)
    assert not all(torch.equal(states[1][n], states[3][n]) for n in states[0] if "/unet:" in n and "up" in n)


def test_conditioning_keeps_its_parts_together() -> None:
    given = [Conditioning(torch.full((2, 3), float(i)), torch.full((4,), float(i))) for i in range(2)]
    joined = Conditioning.join(given, torch.stack)
    assert joined.states.shape == (2, 2, 3) and joined.time_ids is None
    assert joined.pooled is not None and joined.pooled.tolist() == [[0.0] * 4, [1.0] * 4]
    assert joined.map(lambda t: t[1:]).states.shape == (1, 2, 3)
