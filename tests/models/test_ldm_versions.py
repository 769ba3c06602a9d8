"""LdmModel over SD2's and SDXL's modules against diffusers' with the same weights: texts, UNet, gradients."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig, WrongBaseModel
from lib_lora.keys.layer_key import TE1, TE2, UNET, LayerKey
from lib_lora.models.diffusers_model import DiffusersModel
from lib_lora.models.ldm_model import LdmModel, why_not
from lib_lora.models.tokenizer import load_tokenizer
from lib_lora.ports import Conditioning, DiffusionModel, TextOptions
from tests.models import live

pytest.importorskip("ldm")
WIDTH, DEPTH, ARCH = 16, 3, "lorakit-test"
SIZES = 2  # width of each of SDXL's embedded numbers: 4 + 6 * 2 = 16
PROMPTS = ["a red square", "a (photo:1.3) of one, two, three, " + "four five six, " * 30, ""]


class Fixes(nn.Module):
    """The webui's `EmbeddingsWithFixes`: puts embeddings that lie ready into the next call's output."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped, self.embeddings = wrapped, SimpleNamespace(fixes=None)

    def forward(self, ids: Tensor) -> Tensor:
        fixes, self.embeddings.fixes = self.embeddings.fixes, None
        output: Tensor = self.wrapped(ids)
        if fixes is None:
            return output
        return torch.stack([row.index_put((torch.tensor([1]),), vector) for row, vector in zip(output, fixes)])


def _hf(depth: int, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": depth, "vocab_size": 49408}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "projection_dim": WIDTH if projection else 4}
    config = CLIPTextConfig(**shape, **ids, num_attention_heads=2, hidden_act="gelu", max_position_embeddings=77)
    made = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def open_clip_embedder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ldm's own FrozenOpenCLIPEmbedder over a tower that open_clip's factory makes of a configuration file."""
    live.define_missing_ops()
    import open_clip
    from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

    folder = tmp_path_factory.mktemp("open_clip")
    words = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": DEPTH}
    picture = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    shape = {"embed_dim": WIDTH, "vision_cfg": picture, "text_cfg": words}
    (folder / f"{ARCH}.json").write_text(json.dumps(shape))
    open_clip.add_model_config(folder)
    return lambda: FrozenOpenCLIPEmbedder(arch=ARCH, version=None, device="cpu", layer="penultimate")


def _wrapped(embedder: Any) -> Any:
    holder = embedder.transformer.text_model.embeddings if hasattr(embedder, "transformer") else embedder.model
    holder.token_embedding = Fixes(holder.token_embedding)
    outer = nn.Module()
    outer.wrapped = embedder
    return outer


def _finished(model: Any, kind: str) -> Any:
    model.parameterization, model.scale_factor = kind, 0.13025
    model.alphas_cumprod = torch.linspace(0.999, 0.005, 1000)
    model.first_stage_model = nn.Identity()
    return model.eval()


def _share_tower(hf: Any, tower: Any) -> None:
    for parameter in tower.parameters():  # what transformers' form has not
        nn.init.normal_(parameter, std=0.2)
    live.copy_tower(hf, tower)


class Pair(SimpleNamespace):
    """The same weights twice: `live` the ldm or sgm classes, `ours` over them, `theirs` over diffusers'."""

    live: Any
    ours: LdmModel
    theirs: DiffusersModel


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def pair(request: pytest.FixtureRequest, open_clip_embedder: Any, clip_folder: Path) -> Iterator[Pair]:
    torch.manual_seed(0)
    xl = request.param == "sdxl"
    live_unet, unet = _unets(request.param, width=2 * WIDTH if xl else WIDTH)
    embedder, second = open_clip_embedder(), _hf(DEPTH, projection=True)
    _share_tower(second, embedder.model)
    tokenizer = load_tokenizer(clip_folder)
    given: dict[str, Any] = {"tokenizer": tokenizer, "version": request.param, "prediction_type": "v_prediction"}
    if xl:
        first = _hf(DEPTH)
        copied = copy.deepcopy(first)  # before the webui's embedding is put into it
        inner = live.hf_embedder(first)
        inner.tokenizer, inner.layer, inner.layer_idx = tokenizer, "hidden", DEPTH - 1
        embedder.return_pooled = True  # as sgm's FrozenOpenCLIPEmbedder2
        model = live.sgm_model(live_unet, _wrapped(inner), _wrapped(embedder))
        given |= {"text_encoder": copied, "text_encoder_2": second, "tokenizer_2": tokenizer}
    else:
        model = live.ldm_model(live_unet, _wrapped(embedder))
        given["text_encoder"] = _without_last_block(second)
    theirs = DiffusersModel("tiny", unet, vae=None, identity="tiny", **given)
    _finished(model, "v")
    yield Pair(live=model, ours=LdmModel(model), theirs=theirs)


def _unets(version: str, width: int) -> tuple[Any, Any]:
    """With the text encoders' widths in place of those of `live`; contexts for each block as sgm has it."""
    live.UNETS[version, live.TINY], before = (32, width, 8), live.UNETS[version, live.TINY]
    live.SIZES[live.TINY], sizes = WIDTH + 6 * SIZES, live.SIZES[live.TINY]
    try:
        ours, theirs = live.unet(version).eval(), live.diffusers_unet(version, sizes=SIZES)
    finally:
        live.UNETS[version, live.TINY], live.SIZES[live.TINY] = before, sizes
    live.share_unet_weights(ours, theirs, version)
    for module in [m for m in ours.modules() if hasattr(m, "transformer_blocks")]:
        module.register_forward_pre_hook(lambda m, given: (given[0], [given[1]] * len(m.transformer_blocks)))
    return ours.requires_grad_(False), theirs.requires_grad_(False)


def _without_last_block(encoder: Any) -> Any:
    """diffusers' form of SD2's text encoder: it ends with the penultimate block."""
    made = _hf(DEPTH - 1)
    made.load_state_dict({n: t for n, t in encoder.state_dict().items() if n in made.state_dict()})
    return made


def _close(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == reference.shape and reference.abs().max() > 1e-3
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize(
    "options", [TextOptions(), TextOptions(windows=2, weights=True), TextOptions(clip_skip=3)], ids=str
)
def test_text_states_equal_diffusers(pair: Pair, options: TextOptions) -> None:
    ours, theirs = pair.ours.encode_text(PROMPTS, options), pair.theirs.encode_text(PROMPTS, options)
    _close(ours.states, theirs.states)
    assert ours.states.shape[1] == 77 * options.windows
    assert (ours.pooled is not None) == (pair.ours.version == "sdxl")
    if ours.pooled is not None and theirs.pooled is not None:
        _close(ours.pooled, theirs.pooled)
    assert not torch.equal(ours.states[0], ours.states[2])


def test_ldms_own_states_are_those(pair: Pair) -> None:
    """What ldm's class gives by itself; sgm's is compared in the real webui."""
    if pair.ours.version != "sd2":
        pytest.skip("there is no sgm here")
    own = pair.live.cond_stage_model.wrapped
    _close(pair.ours.encode_text([PROMPTS[0], ""]).states, own([PROMPTS[0], ""]), 1e-6)


def test_a_clip_skip_beyond_the_layers_is_refused(pair: Pair) -> None:
    with pytest.raises(BadConfig, match="clip_skip 4"):
        pair.ours.encode_text(["a"], TextOptions(clip_skip=DEPTH + 1))


@pytest.mark.parametrize("ids", [None, [[64, 48, 0, 3, 64, 64], [1024, 4099, 8, 0, 64, 64]]])
def test_the_unet_equals_diffusers(pair: Pair, ids: Any) -> None:
    text = pair.theirs.encode_text(PROMPTS[:2])
    if pair.ours.version == "sdxl" and ids:
        text = Conditioning(text.states, text.pooled, torch.tensor(ids))
    noisy, steps = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([17, 801])
    with torch.no_grad():
        ours = pair.ours.predict(noisy, steps, text)
        _close(ours, pair.theirs.predict(noisy, steps, text), 1e-4)
        if text.time_ids is not None:
            assert not torch.allclose(ours, pair.ours.predict(noisy, steps, Conditioning(text.states, text.pooled)))


def test_sdxl_without_pooled_states_is_refused(pair: Pair) -> None:
    if pair.ours.version != "sdxl":
        pytest.skip("only SDXL has them")
    with pytest.raises(BadConfig, match="pooled"):
        pair.ours.predict(torch.zeros(1, 4, 8, 8), torch.tensor([1]), Conditioning(torch.zeros(1, 77, 32)))


def test_is_the_port_with_every_part(pair: Pair) -> None:
    assert isinstance(pair.ours, DiffusionModel)
    parts = {UNET, TE1, TE2} if pair.ours.version == "sdxl" else {UNET, TE1}
    assert set(pair.ours.roots()) == parts == {key.part for key in pair.ours.slots()}
    assert pair.ours.prediction_type == "v_prediction"


def test_modules_are_those_that_are_called(pair: Pair) -> None:
    """torch's fused attention takes its weights without calling the modules that hold them: a hook would be in vain."""
    modules, slots = pair.ours.modules_by_key(), pair.ours.slots()
    last = TE2 if pair.ours.version == "sdxl" else TE1
    names = ["q_proj", "k_proj", "v_proj", "out_proj"]
    fused = {LayerKey(last, f"text_model.encoder.layers.1.self_attn.{name}") for name in names}
    assert fused <= set(slots) and not fused & set(modules)
    called: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda m, *_: called.add(m)) for module in modules.values()]
    try:
        text = pair.ours.encode_text(["a"], TextOptions(clip_skip=1))
        pair.ours.predict(torch.zeros(1, 4, 8, 8), torch.tensor([1]), text)
    finally:
        for handle in handles:
            handle.remove()
    silent = {key.path for key, module in modules.items() if module not in called}
    assert not silent - {"text_model.final_layer_norm"}  # SDXL's first encoder ends before it


def _hooked(modules: Any, keys: list[LayerKey]) -> tuple[list[Tensor], list[Any]]:
    """Low-rank factors on some layers, and their hooks."""
    generator, factors, handles = torch.Generator().manual_seed(2), [], []
    for key in keys:
        module = modules[key]
        pairs = [torch.randn(n, 2, generator=generator) * 0.1 for n in (module.weight.shape[1], module.weight.shape[0])]
        down, up = (factor.requires_grad_() for factor in pairs)
        factors += [down, up]
        handles.append(module.register_forward_hook(lambda m, a, out, d=down, u=up: out + a[0] @ d @ u.t()))
    return factors, handles


def _gradients(model: Any, keys: list[LayerKey], checkpointing: bool) -> list[Tensor]:
    """Gradients of hooked factors and of the vectors of a new word."""
    factors, handles = _hooked(model.modules_by_key(), keys)
    generator = torch.Generator().manual_seed(3)
    vectors = {
        part: torch.randn(2, WIDTH, generator=generator).requires_grad_() for part in model.roots() if part != UNET
    }
    noisy = torch.randn(1, 4, 8, 8, generator=generator)
    session = getattr(model, "training_session", None)
    try:
        with session(gradient_checkpointing=checkpointing) if session else torch.enable_grad():
            with model.extra_tokens({"sks": vectors}):
                text = model.encode_text(["a sks cat"])
            model.predict(noisy, torch.tensor([400]), text).square().mean().backward()
    finally:
        for handle in handles:
            handle.remove()
    return [tensor.grad for tensor in [*factors, *vectors.values()] if tensor.grad is not None]


def test_gradients_equal_those_through_diffusers(pair: Pair) -> None:
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    keys = [LayerKey(UNET, f"{block}.attn2.to_k"), LayerKey(UNET, f"{block}.attn1.to_out.0")]
    keys += [LayerKey(part, "text_model.encoder.layers.0.mlp.fc1") for part in pair.ours.roots() if part != UNET]
    reference = _gradients(pair.theirs, keys, False)
    assert len(reference) == 2 * len(keys) + len(pair.ours.roots()) - 1
    for checkpointing in (False, True):
        ours = _gradients(pair.ours, keys, checkpointing)
        assert len(ours) == len(reference)
        for mine, theirs in zip(ours, reference):
            _relative(mine, theirs)


def _relative(ours: Tensor, reference: Tensor) -> None:
    assert reference.abs().max() > 1e-9
    assert (ours - reference).abs().max() <= 1e-3 * reference.abs().max()


def test_text_encoders_in_halves_give_float32_states(pair: Pair) -> None:
    """In bf16: norms of fp16, and UNets of either, need a GPU."""
    model = LdmModel(SimpleNamespace(**vars(pair.live)["_modules"] | {"parameterization": "v"}))
    towers = copy.deepcopy([pair.live.cond_stage_model, getattr(pair.live, "conditioner", None)])
    model.model.cond_stage_model, conditioner = towers[0].bfloat16(), towers[1]
    if conditioner is not None:
        model.model.conditioner = conditioner.bfloat16()
    with torch.no_grad():
        text, reference = model.encode_text(PROMPTS[:1]), pair.ours.encode_text(PROMPTS[:1])
    _close(text.states, reference.states, 0.05)
    assert text.states.dtype == torch.float32 and not torch.equal(text.states, reference.states)
    if text.pooled is not None and reference.pooled is not None:
        _close(text.pooled, reference.pooled, 0.05)


def test_the_webuis_embeddings_stay_its_own(pair: Pair) -> None:
    """Those that lie ready for a picture are not read into our texts; ours are not read into a picture."""
    wrapper = ([m for m in pair.live.modules() if isinstance(m, Fixes)])[-1]
    expected = pair.ours.encode_text(["a"]).states
    wrapper.embeddings.fixes = [torch.ones(1, WIDTH)]  # left over from a picture that failed
    assert torch.equal(pair.ours.encode_text(["a"]).states, expected)
    ids = torch.tensor([[5, 6, 7]])
    plain = wrapper(ids)
    vectors = {part: torch.ones(1, WIDTH) for part in pair.ours.roots() if part != UNET}
    with pair.ours.extra_tokens({"sks": vectors}):
        assert torch.equal(wrapper(ids), plain)
        assert not torch.equal(pair.ours.encode_text(["sks"]).states, pair.ours.encode_text(["xyz"]).states)
        wrapper.embeddings.fixes = [torch.ones(1, WIDTH)]
        assert torch.equal(wrapper(ids)[0, 1], torch.ones(WIDTH))
    assert wrapper.embeddings.fixes is None and torch.equal(wrapper(ids), plain)


def test_token_vectors_are_copies_of_the_inner_embedding(pair: Pair) -> None:
    found, theirs = pair.ours.token_vectors("red dog"), pair.theirs.token_vectors("red dog")
    assert set(found) == set(theirs) and all(torch.equal(found[part], theirs[part]) for part in found)
    found[TE1].zero_()
    assert not torch.equal(pair.ours.token_vectors("red dog")[TE1], found[TE1])


def _with_entry(channels: int) -> Any:
    return live.ldm_model(live.unet("sd1", channels=channels), live.hf_embedder(live.hf_tower(live.TINY)))


@pytest.mark.parametrize("channels, kind", [(5, "depth"), (8, "instruct-pix2pix"), (9, "inpainting")])
def test_models_of_more_channels_are_refused_with_the_way_out(channels: int, kind: str) -> None:
    with pytest.raises(WrongBaseModel, match=f"{kind} model.*train on the base checkpoint it was made from"):
        LdmModel(_with_entry(channels))


def test_a_refiner_and_unclip_are_refused_with_the_way_out() -> None:
    refiner = live.sgm_model(live.unet("sd1"), live.open_clip_embedder(live.open_clip_tower(live.TINY)))
    with pytest.raises(WrongBaseModel, match="SDXL's refiner; train on the base model"):
        LdmModel(refiner)
    unclip = _with_entry(4)
    unclip.model.diffusion_model.num_classes = "sequential"
    with pytest.raises(WrongBaseModel, match=r"unCLIP\); load a base checkpoint"):
        LdmModel(unclip)
    odd = _with_entry(4)
    odd.parameterization = "x0"
    assert str(why_not(odd)) == "it predicts 'x0'; load a checkpoint that predicts eps or v"
