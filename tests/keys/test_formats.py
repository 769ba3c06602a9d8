"""Single names of each dialect, conflicts between two of them, and what is no layer."""

from __future__ import annotations

import pytest

from lib_lora.keys import cloneofsimo, embeddings, formats, kohya, strangers
from lib_lora.keys.layer_key import LayerKey

Q = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
TEXT = "text_model.encoder.layers.11."
TEXT_Q = f"{TEXT}self_attn.q_proj"
Q_, OUT_, TEXT_Q_ = Q.replace(".", "_"), OUT.replace(".", "_"), TEXT_Q.replace(".", "_")
SGM_Q = "input_blocks.2.1.transformer_blocks.0.attn1.to_q"
WRAPPED = "base_model.model."


@pytest.mark.parametrize(
    ("name", "part", "path", "tensor", "dialect"),
    [
        (f"lora_unet_{Q_}.lora_up.weight", "unet", Q, "lora_up.weight", "kohya"),
        (f"lycoris_{OUT_}.alpha", "unet", OUT, "alpha", "kohya"),
        (f"lora_unet_{SGM_Q.replace('.', '_')}.alpha", "unet", Q, "alpha", "kohya"),
        (f"lora_te_{TEXT_Q_}.lora_down.weight", "te1", TEXT_Q, "lora_down.weight", "kohya"),
        (f"lora_te1_{TEXT_Q_}.lora_down.weight", "te1", TEXT_Q, "lora_down.weight", "kohya"),
        (f"lora_te2_{TEXT_Q_}.lora_down.weight", "te2", TEXT_Q, "lora_down.weight", "kohya"),
        ("lora_te2_text_projection.lora_up.weight", "te2", "text_projection", "lora_up.weight", "kohya"),
        ("lora_te_text_model_final_layer_norm.w_norm", "te1", "text_model.final_layer_norm", "w_norm", "kohya"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv.alpha", "unet", "up_blocks.0.upsamplers.0.conv", "alpha", "kohya"),
        ("lora_unet_output_blocks_2_1_conv.alpha", "unet", "up_blocks.0.upsamplers.0.conv", "alpha", "kohya"),
        ("lora_unet_output_blocks_2_2_conv.alpha", "unet", "up_blocks.0.upsamplers.0.conv", "alpha", "kohya"),
        ("lora_unet_add_embedding_linear_1.alpha", "unet", "add_embedding.linear_1", "alpha", "kohya"),
        ("lora_unet_label_emb_0_2.alpha", "unet", "add_embedding.linear_2", "alpha", "kohya"),
        ("lora_unet_conv_norm_out.b_norm", "unet", "conv_norm_out", "b_norm", "kohya"),
        ("lora_unet_time_embed_0.diff", "unet", "time_embedding.linear_1", "diff", "kohya"),
        # every type's tensors pass as they are
        (f"lora_unet_{Q_}.weight", "unet", Q, "weight", "kohya"),
        (f"lora_unet_{Q_}.a1.weight", "unet", Q, "a1.weight", "kohya"),
        (f"lora_unet_{Q_}.q_layer.weight", "unet", Q, "q_layer.weight", "kohya"),
        (f"lora_unet_{Q_}.oft_R.scaled_oft", "unet", Q, "oft_R.scaled_oft", "kohya"),
        (f"lora_unet_{Q_}.oft_R.weight", "unet", Q, "oft_R.weight", "kohya"),
        (f"diffusion_model.{SGM_Q}.set_weight", "unet", Q, "set_weight", "bare"),
        (f"diffusion_model.{SGM_Q}.diff_b", "unet", Q, "diff_b", "bare"),
        # kohya's OFT and LyCORIS' mean different things by alpha
        (f"oft_unet_{SGM_Q.replace('.', '_')}.alpha", "unet", Q, "constraint", "kohya"),
        (f"lora_unet_{Q_}.oft_blocks", "unet", Q, "oft_blocks", "kohya"),
        (f"unet.{Q[:-5]}.processor.to_q_lora.up.weight", "unet", Q, "lora_up.weight", "diffusers"),
        (f"{OUT[:-9]}.processor.to_out_lora.down.weight", "unet", OUT, "lora_down.weight", "diffusers"),
        (f"text_encoder.{TEXT_Q[:-7]}.to_q_lora.up.weight", "te1", TEXT_Q, "lora_up.weight", "diffusers"),
        (
            f"text_encoder_2.{TEXT}mlp.fc1.lora_linear_layer.down.weight",
            "te2",
            f"{TEXT}mlp.fc1",
            "lora_down.weight",
            "diffusers",
        ),
        (f"unet.{Q}.lora.down.weight", "unet", Q, "lora_down.weight", "diffusers"),
        (f"{Q[:-5]}.processor.to_k_custom_diffusion.weight", "unet", f"{Q[:-5]}.to_k", "set_weight", "diffusers"),
        (f"unet.{Q}.lora_A.weight", "unet", Q, "lora_down.weight", "peft"),
        (f"unet.{Q}.lora_B.bias", "unet", Q, "lora_up.bias", "peft"),
        (f"{WRAPPED}{OUT}.lora_B.default.weight", "unet", OUT, "lora_up.weight", "peft"),
        (f"unet.{WRAPPED}{OUT}.lora_B.weight", "unet", OUT, "lora_up.weight", "peft"),
        (f"{WRAPPED}unet.{OUT}.lora_B.weight", "unet", OUT, "lora_up.weight", "peft"),
        (f"{WRAPPED}{TEXT_Q}.lora_A.weight", "te1", TEXT_Q, "lora_down.weight", "peft"),
        (f"{WRAPPED}{Q}.lora_magnitude_vector", "unet", Q, "lora_magnitude_vector", "peft"),
        (f"unet.{Q}.lora_magnitude_vector.default.weight", "unet", Q, "lora_magnitude_vector", "peft"),
        (f"lora_unet_{Q_[:-5]}.to_q.lora_magnitude_vector", "unet", Q, "lora_magnitude_vector", "peft"),
        (f"{WRAPPED}{Q}.hada_w1_a", "unet", Q, "hada_w1_a", "peft"),
        (f"{WRAPPED}{Q}.lokr_w2.default", "unet", Q, "lokr_w2", "peft"),
        (f"{WRAPPED}{Q}.oft_r", "unet", Q, "oft_r", "peft"),
        (f"{WRAPPED}{Q}.oft_s", "unet", Q, "oft_s", "peft"),
        (f"{WRAPPED}{Q}.oft_R.weight", "unet", Q, "oft_R", "peft"),
        (f"{Q}.oft_R.default.weight", "unet", Q, "oft_R", "peft"),
        (f"{WRAPPED}{Q}.boft_R", "unet", Q, "boft_R", "peft"),
        (f"{WRAPPED}{Q}.ia3_l", "unet", Q, "ia3_l", "peft"),
        (f"{WRAPPED}{Q}.base_layer.bias", "unet", Q, "set_bias", "peft"),
        (f"{WRAPPED}conv_norm_out.weight", "unet", "conv_norm_out", "set_weight", "peft"),
        (
            f"{WRAPPED}text_model.embeddings.token_embedding.lora_embedding_A",
            *("te1", "text_model.embeddings.token_embedding", "lora_embedding_A", "peft"),
        ),
        (f"diffusion_model.{SGM_Q}.lora_up.weight", "unet", Q, "lora_up.weight", "bare"),
        (f"text_encoders.clip_g.transformer.{TEXT_Q}.lora_up.weight", "te2", TEXT_Q, "lora_up.weight", "bare"),
        (f"clip_l.{TEXT_Q}.lora_up.weight", "te1", TEXT_Q, "lora_up.weight", "bare"),
        ("1_model_transformer_resblocks_11_attn_q_proj.alpha", "te2", TEXT_Q, "alpha", "bare"),
        ("model_transformer_resblocks_11_mlp_c_fc.alpha", "te1", f"{TEXT}mlp.fc1", "alpha", "bare"),
        (f"0_transformer_{TEXT_Q_}.alpha", "te1", TEXT_Q, "alpha", "bare"),
        # without transformers' `text_model` level
        (f"text_encoder.{TEXT_Q[11:]}.lora_A.weight", "te1", TEXT_Q, "lora_down.weight", "peft"),
    ],
)
def test_one_name_of_each_dialect(name: str, part: str, path: str, tensor: str, dialect: str) -> None:
    reading = formats.place({name: (4, 4)})
    assert reading.layers == {LayerKey(part, path): {tensor: name}}
    assert (reading.dialect, reading.unknown) == (dialect, ())
    assert reading.peft == ({LayerKey(part, path)} if dialect == "peft" else set())


@pytest.mark.parametrize(
    "name",
    [
        *(f"{prefix}{Q}.weight" for prefix in ("unet.", "", "model.diffusion_model.")),
        "text_encoder.text_model.final_layer_norm.bias",
        "lora_te_text_model_encoder_layers_007_mlp_fc1.alpha",
        "lora_te_text_model_encoder_layers__mlp_fc1.alpha",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_2_attn1_to_q.alpha",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.alpha",
        f"lora_unet_{Q_}",
        "what is this",
        *("", ".", "..", "unet.", "lora_unet_", "lora_te_.alpha", "unet:0:up", ":up"),
    ],
)
def test_one_strange_key_never_costs_the_rest(name: str) -> None:
    """A model's own parameters, layers that no model has, numbers in another form, and noise."""
    known = f"lora_unet_{Q_}.lora_up.weight"
    reading = formats.place({known: (4, 4), name: (1,)})
    assert list(reading.layers) == [LayerKey("unet", Q)]
    assert reading.unknown == (name,)


def test_one_layer_under_two_names_is_read_once_and_the_other_is_told() -> None:
    """Tensors of two spellings are not one layer's: half of one with half of the other would be nonsense."""
    ours, theirs = f"lora_unet_{Q_}", f"unet.{Q}"
    names = [f"{ours}.lora_up.weight", f"{theirs}.lora_A.weight", f"{ours}.lora_down.weight", f"{theirs}.lora_B.weight"]
    reading = formats.place(dict.fromkeys(names, (4, 4)))
    assert reading.layers == {LayerKey("unet", Q): {"lora_up.weight": names[0], "lora_down.weight": names[2]}}
    assert reading.unknown == (names[1], names[3])


def test_a_tensor_named_twice_is_kept_once_and_shown() -> None:
    names = [f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora.down.weight"]
    assert formats.place(dict.fromkeys(names, (4, 4))).unknown == (names[1],)


def test_a_list_of_text_layers_without_a_part_belongs_to_the_encoder_of_that_width() -> None:
    for width, part in ((768, "te1"), (1024, "te1"), (1280, "te2")):
        names = {
            f"{WRAPPED}{TEXT_Q}.lora_A.weight": (4, width),
            f"{WRAPPED}{TEXT}mlp.fc2.lora_A.weight": (4, 4 * width),
        }
        reading = formats.place(names)
        assert {key.part for key in reading.layers} == {part}
        assert {key.part for key in reading.peft} == {part}
    prefixed = {f"text_encoder.{TEXT_Q}.lora_A.weight": (4, 1280)}
    assert {key.part for key in formats.place(prefixed).layers} == {"te1"}


def test_dialect_is_that_of_most_names() -> None:
    names = [f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight", f"lora_te_{TEXT_Q_}.alpha"]
    assert formats.place(dict.fromkeys(names, ())).dialect == "peft"
    assert formats.place({"lora_unet_double_blocks_0_img_attn_proj.alpha": ()}).dialect == "kohya"
    assert formats.place({"x": ()}).dialect == ""


@pytest.mark.parametrize(
    ("key", "version", "name"),
    [
        (LayerKey("unet", Q), "sd1", f"lora_unet_{Q_}"),
        (
            LayerKey("unet", Q.replace("blocks.0.", "blocks.1.", 1)),
            "sdxl",
            "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_q",
        ),
        (LayerKey("te1", TEXT_Q), "sd2", f"lora_te_{TEXT_Q_}"),
        (LayerKey("te1", TEXT_Q), "sdxl", f"lora_te1_{TEXT_Q_}"),
        (LayerKey("te2", TEXT_Q), "sdxl", f"lora_te2_{TEXT_Q_}"),
    ],
)
def test_kohyas_names_by_version(key: LayerKey, version: str, name: str) -> None:
    assert kohya.layer_name(key, version) == name


class TestEmbeddings:
    """What a file brings along beside its layers."""

    def test_bundled_and_cloneofsimos(self) -> None:
        names: dict[str, tuple[int, ...]] = {
            "bundle_emb.my.cat.clip_l": (2, 768),
            "bundle_emb.my.cat.clip_g": (2, 1280),
            "bundle_emb.dog.string_to_param.*": (1, 1024),
            "<s1>": (768,),
        }
        reading = formats.place(names, {"<s1>": "<embed>", "x": "<embed>"})
        assert reading.embeddings == {
            "my.cat": {"clip_l": "bundle_emb.my.cat.clip_l", "clip_g": "bundle_emb.my.cat.clip_g"},
            "dog": {"clip_l": "bundle_emb.dog.string_to_param.*"},
            "<s1>": {"clip_l": "<s1>"},
        }
        assert not reading.unknown
        assert embeddings.bundled_name("my.cat", "clip_g") in names

    def test_what_cannot_be_vectors_is_told(self) -> None:
        names = (
            "bundle_emb.a.clip_l_out",
            "bundle_emb.a.t5",
            "bundle_emb.clip_l",
            "bundle_emb.a.string_to_param.x.y",
            "<s2>",
        )
        assert formats.place(dict.fromkeys(names, (1, 8))).unknown == names
        assert formats.place({"bundle_emb.a.clip_l": (1, 2, 3)}).unknown == ("bundle_emb.a.clip_l",)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("lora_controlnet", "ControlNet extension"),
        ("input_hint_block.0.weight", "ControlNet extension"),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
        ("emb_params", "embeddings folder"),
        ("string_to_param.*", "embeddings folder"),
        ("model.diffusion_model.out.2.weight", "checkpoints folder"),
        ("unet.conv_in.weight", "checkpoints folder"),
        ("decoder.conv_in.weight", "VAE folder"),
        ("768.0.linear.0.weight", "hypernetworks folder"),
        ("base_model.model.unet.conv_in.vera_lambda_b", "cannot be applied"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "language model"),
    ],
)
def test_files_that_are_no_network_are_told_where_they_belong(name: str, place: str) -> None:
    assert place in str(strangers.describe(["x", name]))


def test_nobody_knows_noise() -> None:
    assert strangers.describe(["x", ""]) is None


class TestCloneofsimo:
    """The numbering, rebuilt from the module walk of the writer over a real model."""

    @staticmethod
    def written(classes: set[str], *, old: bool) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """Shapes as the writer's walk gives them, and the paths in that order."""
        from lib_lora.miniature.nets import new_unet

        found: list[tuple[str, tuple[int, ...]]] = []
        model = new_unet()
        for ancestor_name, ancestor in model.named_modules():
            if type(ancestor).__name__ not in classes:
                continue
            for name, leaf in ancestor.named_modules():
                if type(leaf).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv"):
                    found.append((f"{ancestor_name}.{name}", tuple(leaf.weight.shape)))
        if old:  # diffusers up to 0.11 registered ff before attn2
            spot = {"attn1": 0, "ff": 1, "attn2": 2}
            blocks = list(dict.fromkeys(p.split(".transformer_blocks.0.")[0] for p, _ in found))

            def place(path: str) -> tuple[int, int]:
                block, _, rest = path.partition(".transformer_blocks.0.")
                return blocks.index(block), spot[rest.split(".")[0]] if rest else 0

            found.sort(key=lambda item: place(item[0]))
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (_, shape) in enumerate(found):
            ones = (1,) * (len(shape) - 2)
            shapes[f"unet:{i}:up"] = (shape[0], 4, *ones)
            shapes[f"unet:{i}:down"] = (4, *shape[1:])
        return shapes, [path for path, _ in found]

    @pytest.mark.parametrize("old", [True, False])
    @pytest.mark.parametrize("extended", [True, False])
    def test_unet_numbers(self, old: bool, extended: bool) -> None:
        classes = {"Attention", "GEGLU"} | ({"ResnetBlock2D"} if extended else set())
        shapes, paths = self.written(classes, old=old)
        assert len(paths) == (224 if extended else 144)
        placed = cloneofsimo.place(shapes)
        for i, path in enumerate(paths):
            assert placed[f"unet:{i}:up"] == (LayerKey("unet", path), "lora_up.weight")
            assert placed[f"unet:{i}:down"] == (LayerKey("unet", path), "lora_down.weight")

    def test_text_encoder_numbers_follow_transformers_order(self) -> None:
        shapes = {f"text_encoder:{i}:{side}": (8, 8) for i in range(48) for side in ("up", "down")}
        placed = cloneofsimo.place(shapes)
        assert placed["text_encoder:0:up"][0].path.endswith("layers.0.self_attn.k_proj")
        assert placed["text_encoder:47:down"][0].path.endswith("layers.11.self_attn.out_proj")
        assert len(placed) == 96

    def test_a_list_that_does_not_say_whose_it_is(self) -> None:
        """cloneofsimo's pickled lists: the text encoder's has no GEGLU where the UNet's must have one."""
        shapes = {f"unet:{i}:{side}": (8, 4) if side == "up" else (4, 8) for i in range(48) for side in ("up", "down")}
        placed = cloneofsimo.place(shapes)
        assert placed["unet:0:up"] == (
            LayerKey("te1", "text_model.encoder.layers.0.self_attn.k_proj"),
            "lora_up.weight",
        )
        assert {key.part for key, _ in placed.values()} == {"te1"}

    @pytest.mark.parametrize("extended", [True, False])
    def test_numbers_of_layers_lead_back(self, extended: bool) -> None:
        _, paths = self.written({"Attention", "GEGLU"} | ({"ResnetBlock2D"} if extended else set()), old=False)
        for i, path in enumerate(paths):
            assert cloneofsimo.layer_number(LayerKey("unet", path), extended) == ("unet", i)
        assert cloneofsimo.layer_number(LayerKey("unet", "conv_in"), extended) is None
        assert cloneofsimo.layer_number(LayerKey("te2", TEXT_Q), extended) is None
        assert cloneofsimo.layer_number(LayerKey("te1", TEXT_Q), extended) == ("text_encoder", 46)
