"""Tensors of any names and shapes together: a layer, None or ShapeMismatch, never another error."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lora.errors import ShapeMismatch
from lib_lora.networks import registry
from tests.networks import matrix as m

TYPES = [
    ("lora_up.weight", "lora_down.weight"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
    ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    ("weight", "on_input"),
    ("ia3_l",),
    ("diff",),
    ("w_norm", "b_norm"),
    ("set_weight",),
    (),
]
BESIDE = ("alpha", "diff_b", "set_bias", "lora_up.bias", "scalar", "bias_indices", "bias_values", "bias_size", "other")


@given(data=st.data(), names=st.sampled_from(TYPES))
@settings(max_examples=250, deadline=None)
def test_nothing_crashes(data: st.DataObject, names: tuple[str, ...]) -> None:
    shapes, weight = data.draw(m.shapes(names, BESIDE))
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    try:
        layer = registry.build(tensors)
        if layer is None:
            return
        if layer.changes_weight:
            assert layer.delta(torch.ones(weight)).shape == weight
        if layer.changes_bias:
            assert layer.bias_delta(torch.ones(weight[0])).shape == weight[:1]
        layer.truncated(1)
    except ShapeMismatch:
        return
    assert "other" not in tensors
    assert layer.to_tensors().keys() >= tensors.keys() - {"alpha"}
