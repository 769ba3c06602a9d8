"""Names known beforehand: paths with underscores, dots and numbers survive."""

from __future__ import annotations

from lib_lora.keys.exact import place
from lib_lora.keys.layer_key import UNET, LayerKey

KNOWN = {
    path: LayerKey(UNET, path)
    for path in ("w_q", "blocks.0.w_q", "blocks_0.w_q", "blocks.0.w_q.lora", "net.processor.to_k", "text_model.w.1")
}


def test_each_tensor_goes_to_its_layer() -> None:
    tensors = ("lora_up.weight", "alpha", "hada_w1_a", "weight", "on_input", "diff_b", "dora_scale", "oft_blocks")
    names = [f"{path}.{tensor}" for path in KNOWN for tensor in tensors]
    reading = place(names, KNOWN)
    assert reading.unknown == () and reading.layers.keys() == set(KNOWN.values())
    for path, key in KNOWN.items():
        assert reading.layers[key] == {tensor: f"{path}.{tensor}" for tensor in tensors}
    assert reading.peft == frozenset()


def test_pefts_names() -> None:
    names = [f"base_model.model.blocks.0.w_q.lora_{side}.weight" for side in "AB"]
    names += [f"w_q.lora_{side}.default.weight" for side in "AB"] + ["base_model.model.w_q.weight"]
    reading = place(names, KNOWN)
    key = LayerKey(UNET, "blocks.0.w_q")
    assert reading.layers[key] == {"lora_down.weight": names[0], "lora_up.weight": names[1]}
    assert reading.layers[LayerKey(UNET, "w_q")]["set_weight"] == names[-1]
    assert reading.dialect == "peft" and key in reading.peft


def test_strangers_and_doubles_are_told() -> None:
    names = ["blocks.1.w_q.lora_up.weight", "w_q.lora_up.weight", "w_q.lora_B.weight", "alpha", ".alpha", "w_q"]
    reading = place(names, KNOWN)
    assert reading.unknown == (names[0], *names[2:])
    assert place([], KNOWN).dialect == ""
