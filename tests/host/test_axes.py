"""Axes of the X/Y/Z plot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lib_lora.errors import BadTag
from lib_lora.host.axes import add_axes
from lib_lora.host.neighbours import Neighbours


class Option:
    """The webui's AxisOption."""

    def __init__(self, label: str, type: Any, apply: Any, confirm: Any, cost: float, choices: Any = None) -> None:
        self.label, self.type, self.apply, self.confirm, self.cost, self.choices = (
            label,
            type,
            apply,
            confirm,
            cost,
            choices,
        )


@pytest.fixture
def axes(webui: Any) -> dict[str, Any]:
    """Our axes by name, after they were added twice to a plot that txt2img and img2img share."""
    module = SimpleNamespace(axis_options=[SimpleNamespace(label="Seed")], AxisOption=Option)
    path = "/webui/scripts/xyz_grid.py"
    webui.scripts.scripts_data = [SimpleNamespace(path=path, module=module), SimpleNamespace(path="/x.py", module=None)]
    for _ in range(2):
        add_axes(webui, Neighbours(webui), lambda: ["cat", "dog"])
    assert next(option.label for option in module.axis_options) == "Seed" and len(module.axis_options) == 4
    return {option.label.removeprefix("[LoRA kit] "): option for option in module.axis_options[1:]}


def _p(prompt: str, **more: Any) -> Any:
    return SimpleNamespace(prompt=prompt, **more)


def _applied(axis: Any, p: Any, value: Any) -> str:
    axis.apply(p, value, [value])
    return str(p.prompt)


def test_the_network_of_the_first_tag_is_replaced(axes: dict[str, Any]) -> None:
    network = axes["Network"]
    assert network.choices() == ["None", "cat", "dog"] and network.type is str
    assert _applied(network, _p("a <lora:x:0.5> <lora:y:1>"), "cat") == "a <lora:cat:0.5> <lora:y:1>"
    assert _applied(network, _p("a <lora:x:0.5>"), "None") == "a "
    assert _applied(network, _p("a", hr_prompt="b"), "cat") == "a<lora:cat>"
    hires = _p("a <lora:x:0.5>", hr_prompt="b <lora:x:1>")
    network.apply(hires, "cat", [])
    assert hires.hr_prompt == "b <lora:cat:1>"
    network.confirm(_p("a"), ["cat", "None"])
    with pytest.raises(RuntimeError, match="'bird'"):
        network.confirm(_p("a"), ["bird"])


def test_strength_and_preset_change_the_first_tag_and_the_hires_prompts(axes: dict[str, Any]) -> None:
    p = _p("a <lora:x:1:lbw=MIDD> <lora:y:1>", hr_prompt="b <lora:y:1>")
    assert _applied(axes["Strength"], p, 0.5) == "a <lora:x:0.5:lbw=MIDD> <lora:y:1>" and p.hr_prompt == "b <lora:y:1>"
    assert _applied(axes["Block preset"], p, "INALL") == "a <lora:x:0.5:lbw=INALL> <lora:y:1>"
    assert _applied(axes["Block preset"], p, "None") == "a <lora:x:0.5> <lora:y:1>"
    assert axes["Strength"].type is float
    assert {"None", "MIDD"} <= set(axes["Block preset"].choices())


def test_a_plot_that_can_change_nothing_does_not_start(axes: dict[str, Any]) -> None:
    for axis, values in (("Strength", [0.5]), ("Block preset", ["MIDD"])):
        with pytest.raises(BadTag, match="first <lora"):
            axes[axis].confirm(_p("no tag"), values)
        axes[axis].confirm(_p("a <lora:x:1:lbw=MY>"), values)
    with pytest.raises(RuntimeError, match="'MY'"):
        axes["Block preset"].confirm(_p("a <lora:x:1>"), ["MY"])


def test_where_the_network_axis_took_the_tag_out_the_others_do_nothing(axes: dict[str, Any]) -> None:
    p = _p("a <lora:x:1>")
    axes["Network"].apply(p, "None", [])
    axes["Strength"].apply(p, 0.5, [])
    axes["Block preset"].apply(p, "MIDD", [])
    assert p.prompt == "a "
