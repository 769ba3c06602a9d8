"""Every optimizer a job can name: what it computes, what it is told, and what is said when it cannot be had."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.train.optim import set_rates
from lib_lora.train.optimizers import Groups, Lion, build_optimizer, parse_arguments, require_package
from lib_lora.train.sections import OPTIMIZERS, OptimizerSection

NEEDS = {
    **dict.fromkeys(("adamw8bit", "paged_adamw8bit", "lion8bit", "paged_lion8bit"), "bitsandbytes"),
    "adafactor": "transformers",
    "prodigy": "prodigyopt",
    "schedulefree": "schedulefree",
}


def section(name: str, **settings: Any) -> OptimizerSection:
    if name == "custom":
        settings.setdefault("path", "torch.optim.NAdam")
    return OptimizerSection(name=name, **settings)


def have(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}, which is not installed")


def groups(*rates: float, size: int = 5) -> Groups:
    return [
        {"params": [nn.Parameter(torch.linspace(-1, 1, size))], "lr": rate, "base_lr": rate}
        for rate in rates or (0.01,)
    ]


def run(optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
    """Some steps on gradients that depend on the parameters; the first parameter afterwards."""
    chosen = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for p in chosen:
            p.grad = torch.sin(p.detach() * 7 + step)
        optimizer.step()
    return chosen[0].detach().double()


def reference(rule: Callable[[Tensor, Tensor, dict[str, Tensor], int], Tensor], steps: int) -> Tensor:
    p, state = torch.linspace(-1, 1, 5).double(), {"m": torch.zeros(5).double(), "v": torch.zeros(5).double()}
    for step in range(steps):
        p = rule(p, torch.sin(p * 7 + step), state, step + 1)
    return p


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    have(name)
    rate = {"prodigy": 1.0, "sgd": 0.05}.get(name, 0.02)
    chosen = groups(rate, size=8192)
    optimizer = build_optimizer(section(name, lr=rate), chosen)
    assert isinstance(optimizer, torch.optim.Optimizer)
    parameter = chosen[0]["params"][0]
    losses = []
    for _ in range(60):
        loss = (parameter - 0.3).square().mean() * 4096
        loss.backward()
        losses.append(float(loss.detach()))
        set_rates(optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert losses[-1] < 0.7 * losses[0]


def test_adamw_is_decoupled_and_takes_every_setting() -> None:
    def rule(p: Tensor, g: Tensor, state: dict[str, Tensor], n: int) -> Tensor:
        state["m"], state["v"] = 0.8 * state["m"] + 0.2 * g, 0.9 * state["v"] + 0.1 * g * g
        step = (state["m"] / (1 - 0.8**n)) / ((state["v"] / (1 - 0.9**n)).sqrt() + 1e-6)
        return p - 0.01 * 0.1 * p - 0.01 * step

    job = section("adamw", beta1=0.8, beta2=0.9, weight_decay=0.1, args=("eps=1e-6",))
    made = build_optimizer(job, groups())
    assert made.defaults["foreach"] is True
    assert torch.allclose(run(made, 5), reference(rule, 5), rtol=1e-5)


@pytest.mark.gpu
def test_adamw_is_fused_on_a_gpu() -> None:
    chosen: Groups = [{"params": [nn.Parameter(torch.ones(3, device="cuda"))], "lr": 0.1, "base_lr": 0.1}]
    assert build_optimizer(section("adamw"), chosen).defaults["fused"] is True


def lion_rule(p: Tensor, g: Tensor, state: dict[str, Tensor], n: int) -> Tensor:
    move = (0.9 * state["m"] + 0.1 * g).sign()
    state["m"] = 0.99 * state["m"] + 0.01 * g
    return p - 0.01 * (move + 0.1 * p)


def test_lion_is_the_papers() -> None:
    made = build_optimizer(section("lion", beta1=0.9, beta2=0.99, weight_decay=0.1), groups())
    assert torch.allclose(run(made, 5), reference(lion_rule, 5), rtol=1e-5)
    # bitsandbytes' 32-bit Lion after the same five steps
    theirs = [-1.0249900817871094, -0.487525075674057, -0.01994004100561142, 0.5074251294136047, 0.9850900173187256]
    means = [0.01405042689293623, -0.00962755922228098, 0.014049810357391834]
    means += [-0.005160892847925425, 0.008141078986227512]
    parameter = made.param_groups[0]["params"][0]
    assert parameter.tolist() == pytest.approx(theirs, rel=1e-6)
    assert made.state[parameter]["exp_avg"].tolist() == pytest.approx(means, rel=1e-5)


def test_lion_skips_what_has_no_gradient_and_calls_a_closure() -> None:
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Lion([one, two], lr=0.5)

    def closure() -> Tensor:
        loss = (one * 2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert one.tolist() == [0.5, 0.5] and two.tolist() == [1.0, 1.0]
    with pytest.raises(BadConfig, match="betas = "):
        build_optimizer(section("lion", args=("betas=(1.5, 0.9)",)), groups())


def test_sgd_has_beta1_for_momentum() -> None:
    def rule(p: Tensor, g: Tensor, state: dict[str, Tensor], n: int) -> Tensor:
        state["m"] = 0.8 * state["m"] + g + 0.1 * p
        return p - 0.01 * state["m"]

    job = section("sgd", beta1=0.8, weight_decay=0.1)
    assert torch.allclose(run(build_optimizer(job, groups()), 5), reference(rule, 5), rtol=1e-5)


def test_adafactor_follows_the_jobs_rate() -> None:
    def rule(p: Tensor, g: Tensor, state: dict[str, Tensor], n: int) -> Tensor:
        share = 1 - n**-0.8
        state["v"] = share * state["v"] + (1 - share) * (g * g + 1e-30)
        update = g / state["v"].sqrt()
        update = update / max(1.0, float(update.norm() / 5**0.5))
        return p - 0.01 * 0.1 * p - 0.01 * update

    have("adafactor")
    job = section("adafactor", weight_decay=0.1)
    assert torch.allclose(run(build_optimizer(job, groups()), 5), reference(rule, 5), rtol=1e-4)


def test_adafactors_own_steps_are_told(caplog: pytest.LogCaptureFixture) -> None:
    have("adafactor")
    with caplog.at_level(logging.WARNING):
        made = build_optimizer(section("adafactor", args=("relative_step=True", "beta1=0.9")), groups())
    assert made.param_groups[0]["relative_step"] is True and made.param_groups[0]["beta1"] == 0.9
    assert "optimizer.lr has no effect" in caplog.text


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw8bit", "lion8bit", "paged_lion8bit"])
def test_eight_bit_ones_keep_eight_bits_and_follow_the_whole_one(name: str) -> None:
    have(name)
    settings: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
    made = build_optimizer(section(name, **settings), groups(size=8192))
    after = run(made, 5)
    (state,) = made.state.values()
    assert state["state1"].dtype == torch.uint8
    plain = run(build_optimizer(section("lion" if "lion" in name else "adamw", **settings), groups(size=8192)), 5)
    moved = plain - torch.linspace(-1, 1, 8192).double()
    assert float((after - plain).norm() / moved.norm()) < 0.05


def test_prodigy_wants_rate_one_and_only_one(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    have("prodigy")
    with caplog.at_level(logging.WARNING):
        build_optimizer(section("prodigy"), groups(1.0, 1.0, 0.0))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        made = build_optimizer(section("prodigy", weight_decay=0.1, warmup_steps=5), groups(0.5, 0.5))
    assert "wants optimizer.lr = 1, not 0.5" in caplog.text
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.5]
    assert made.param_groups[1]["weight_decay"] == 0.1 and made.param_groups[0]["safeguard_warmup"] is True
    with pytest.raises(
        BadConfig, match="one rate for all, but the job has 1e-05, 0.0001; give lr, te_lr, te2_lr and method.token_lr"
    ):
        build_optimizer(section("prodigy"), groups(1e-4, 1e-5))
    assert capsys.readouterr().out == ""


def test_schedulefree_is_in_training_mode_and_averages_alone(caplog: pytest.LogCaptureFixture) -> None:
    have("schedulefree")
    made = build_optimizer(section("schedulefree", beta1=0.8, weight_decay=0.1), groups())
    assert made.param_groups[0]["train_mode"] is True and made.param_groups[0]["betas"] == (0.8, 0.999)
    with pytest.raises(BadConfig, match="optimizer.ema = 0.9 .* averages already; set it to 0"):
        build_optimizer(section("schedulefree", ema=0.9), groups())
    with caplog.at_level(logging.WARNING):
        build_optimizer(section("schedulefree", schedule="cosine"), groups())
    assert "made for optimizer.schedule = constant, not cosine" in caplog.text


def test_custom_takes_what_it_knows_of_the_job() -> None:
    job = section("custom", path="torch.optim.RMSprop", weight_decay=0.1, args=("alpha=0.5", "centered=True"))
    group = build_optimizer(job, groups()).param_groups[0]
    assert (group["weight_decay"], group["alpha"], group["centered"], group["lr"]) == (0.1, 0.5, True, 0.01)
    nadam = build_optimizer(section("custom", beta1=0.7), groups()).param_groups[0]
    assert nadam["betas"] == (0.7, 0.999)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": ""}, "path = '' is no import path of a class; give one"),
        ({"path": "NAdam"}, "path = 'NAdam' is no import path"),
        ({"path": "nothing.here.Adam"}, "'nothing.here.Adam' cannot be imported .*install its package"),
        ({"path": "torch.optim.Nothing"}, "'torch.optim.Nothing' cannot be imported .*correct it"),
        ({"path": "torch.nn.Linear"}, "no subclass of torch.optim.Optimizer"),
        ({"path": "torch.optim.SGD", "args": ("wings=2",)}, "SGD does not take .*'wings': 2.*it knows momentum"),
        ({"path": "torch.optim.SGD", "args": ("momentum=-1",)}, "SGD does not take .*-1.*correct optimizer.args"),
    ],
)
def test_what_is_wrong_with_a_custom_one_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        build_optimizer(section("custom", **settings), groups())


def test_arguments_are_literals() -> None:
    texts = ("eps=1e-6", "betas = (0.9, 0.99)", "amsgrad=True", "mode='a=b'", "none=None")
    assert parse_arguments(OptimizerSection(args=texts)) == {
        "eps": 1e-6,
        "betas": (0.9, 0.99),
        "amsgrad": True,
        "mode": "a=b",
        "none": None,
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("eps",), "'eps', which is not name=value"),
        (("1x=2",), "'1x=2', which is not name=value"),
        (("eps=tiny",), "'eps=tiny', whose value is no Python literal; write a number"),
        (("eps=__import__('os').getcwd()",), "no Python literal"),
        (("eps=",), "no Python literal"),
        (("lr=1",), "lr has a setting of its own"),
        (("eps=1", "eps=2"), "'eps=2', but eps is given twice"),
    ],
)
def test_arguments_that_cannot_be_read(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        build_optimizer(OptimizerSection(args=texts), groups())


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_package_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(BadConfig, match=rf"{name}' needs {NEEDS[name]}, .*pip install {NEEDS[name]}\) or use"):
        build_optimizer(section(name), groups())


@pytest.mark.parametrize("failure", ["raises", "moves nothing"])
def test_a_package_that_fails_on_this_device_is_told(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            if failure == "raises":
                raise NameError("name 'str2optimizer8bit_blockwise' is not defined")

    class Package:
        class optim:  # noqa: N801
            Lion8bit = AdamW8bit = Broken

    monkeypatch.setattr(importlib, "import_module", lambda module: Package)
    for name, instead in (("adamw8bit", "adamw"), ("lion8bit", "lion")):
        with pytest.raises(BadConfig, match=rf"bitsandbytes does not work on cpu \(.*\); install .* = '{instead}'"):
            build_optimizer(section(name), groups())


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt"), ("adamw", "")])
def test_a_missing_package_is_told_before_anything_is_prepared(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_package(OptimizerSection(name=name))
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    if not package:
        require_package(OptimizerSection(name=name))
        return
    with pytest.raises(BadConfig, match=f"needs {package}, .* 'adamw'"):
        require_package(OptimizerSection(name=name))
