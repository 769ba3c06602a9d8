"""The kinds of training by name. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from lib_lora.train.methods.base import Method
from lib_lora.train.methods.dreambooth import DreamBooth
from lib_lora.train.methods.hypernetwork import HypernetworkMethod
from lib_lora.train.methods.inversion import TextualInversion
from lib_lora.train.methods.lcm import LcmMethod
from lib_lora.train.methods.network import NetworkMethod
from lib_lora.train.methods.pivotal import CustomDiffusion, PivotalTuning
from lib_lora.train.methods.slider import ImageSliderMethod, SliderMethod

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        NetworkMethod(),
        DreamBooth(),
        TextualInversion(),
        PivotalTuning(),
        CustomDiffusion(),
        HypernetworkMethod(),
        LcmMethod(),
        SliderMethod(),
        ImageSliderMethod(),
    )
}


def method_of(name: str) -> Method:
    """The kind of training called `name`."""
    return METHODS[name]
