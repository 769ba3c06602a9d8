"""Every dialect lands on the same canonical layers; strangers are counted, other base models recognised."""

from __future__ import annotations

import pytest

from lib_lora.keys import cloneofsimo, formats, kohya, text_encoder, unet, versions
from lib_lora.keys.layer_key import LayerKey

Q = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
TEXT_Q = "text_model.encoder.layers.11.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "part", "path", "tensor", "dialect"),
    [
        (f"lora_unet_{Q.replace('.', '_')}.lora_up.weight", "unet", Q, "lora_up.weight", "kohya"),
        (f"lycoris_{OUT.replace('.', '_')}.alpha", "unet", OUT, "alpha", "kohya"),
        ("lora_unet_input_blocks_2_1_transformer_blocks_0_attn1_to_q.alpha", "unet", Q, "alpha", "kohya"),
        (f"lora_te_{TEXT_Q.replace('.', '_')}.lora_down.weight", "te1", TEXT_Q, "lora_down.weight", "kohya"),
        ("lora_te_text_model_final_layer_norm.w_norm", "te1", "text_model.final_layer_norm", "w_norm", "kohya"),
        (f"unet.{Q[:-5]}.processor.to_q_lora.up.weight", "unet", Q, "lora_up.weight", "diffusers"),
        (f"{OUT[:-9]}.processor.to_out_lora.down.weight", "unet", OUT, "lora_down.weight", "diffusers"),
        (f"text_encoder.{TEXT_Q[:-7]}.to_q_lora.up.weight", "te1", TEXT_Q, "lora_up.weight", "diffusers"),
        (f"text_encoder.{TEXT_Q}.lora_linear_layer.down.weight", "te1", TEXT_Q, "lora_down.weight", "diffusers"),
        (f"unet.{Q}.lora.down.weight", "unet", Q, "lora_down.weight", "diffusers"),
        (f"unet.{Q}.lora_A.weight", "unet", Q, "lora_down.weight", "peft"),
        (f"base_model.model.{OUT}.lora_B.default.weight", "unet", OUT, "lora_up.weight", "peft"),
        (f"base_model.model.{TEXT_Q}.lora_A.weight", "te1", TEXT_Q, "lora_down.weight", "peft"),
        (
            "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
            "unet",
            Q,
            "lora_up.weight",
            "bare",
        ),
    ],
)
def test_one_name_of_each_dialect(name: str, part: str, path: str, tensor: str, dialect: str) -> None:
    reading = formats.place({name: (4, 4)})
    assert reading.layers == {LayerKey(part, path): {tensor: name}}
    assert (reading.dialect, reading.unknown) == (dialect, ())


def test_kohyas_names_invert_for_every_layer() -> None:
    keys = [LayerKey("unet", p) for p in unet.unet_paths()]
    keys += [LayerKey("te1", p) for p in text_encoder.text_encoder_paths()]
    names = {f"{kohya.layer_name(key)}.alpha": key for key in keys}
    assert len(names) == len(keys)
    assert all(kohya.parse(name) == (key, "alpha") for name, key in names.items())


def test_one_strange_key_never_costs_the_rest() -> None:
    known = f"lora_unet_{Q.replace('.', '_')}.lora_up.weight"
    strange = ("what is this", "lora_unet_no_such_layer.alpha", "lora_te_.alpha", "", "unet:0:up", ".", "lora_unet_")
    reading = formats.place({known: (4, 4), **dict.fromkeys(strange, (1,))})
    assert list(reading.layers) == [LayerKey("unet", Q)]
    assert reading.unknown == strange


def test_a_tensor_named_twice_is_kept_once_and_shown() -> None:
    names = [f"lora_unet_{Q.replace('.', '_')}.alpha", f"lycoris_{Q.replace('.', '_')}.alpha"]
    reading = formats.place(dict.fromkeys(names, ()))
    assert reading.unknown == (names[1],)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1.alpha", "sdxl"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.alpha", "sdxl"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q.alpha", "sdxl"),
        ("lora_unet_middle_block_1_transformer_blocks_9_attn1_to_q.alpha", "sdxl"),
        ("lora_unet_double_blocks_0_img_attn_proj.alpha", "flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_proj.alpha", "sd3"),
        (f"lora_unet_{Q.replace('.', '_')}.alpha", None),
    ],
)
def test_other_base_models_are_told_by_names(name: str, version: str | None) -> None:
    assert versions.by_names([name]) == version


def test_an_sdxl_file_is_not_half_matched() -> None:
    shared = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha"
    assert formats.place({shared: ()}).layers
    reading = formats.place({shared: (), shared.replace("blocks_0", "blocks_1"): ()})
    assert not reading.layers
    assert len(reading.unknown) == 2


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

    def test_embeddings_are_no_layers(self) -> None:
        reading = formats.place({"<s1>": (768,)}, {"<s1>": "<embed>"})
        assert (reading.embeddings, reading.unknown) == (("<s1>",), ())
