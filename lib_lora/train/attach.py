"""Trainable layers hung on a frozen model, and taken off again without a trace.

Two ways. A *branch* adds what the layer does to the module's output: for LoRA, and for LoKr on linear layers that are
kept in half precision. The base weight is constant then, and no gradient of its size is ever made: beside the base's
own product come two thin ones.
*In the weight*: the module computes with `W + sum of deltas` in place of W, exactly what the merged model computes.
That is for everything else: a delta that is as large as the weight costs less added to it than in a pass of its own
(one product instead of two forward, two instead of three backward), and changes of biases, norms, embeddings and rows
of a fused projection are to be had no other way. LoKr costs less so too, by a fifth of a step on a CPU, but what it
adds to a weight in half precision would mostly be rounded away in the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib_lora.errors import BadConfig
from lib_lora.keys.layer_key import LayerKey
from lib_lora.models.precision import WIDE
from lib_lora.networks.base import Layer, Op, innermost
from lib_lora.networks.lokr import LoKr
from lib_lora.networks.lora import Lora
from lib_lora.patch.targets import EIGHT_BIT, Piece
from lib_lora.ports import Patchable, Slot
from lib_lora.train.frozen import frozen
from lib_lora.train.layers import new_layers
from lib_lora.train.targets import read_by_forward, target_keys

__all__ = ["Drops", "Layers", "attach", "frozen", "new_layers", "target_keys"]
Layers = Mapping[LayerKey, Layer]
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Drops:
    """What is left out at random while gradients are computed, as shares; drawn from torch's global generators.

    `inputs`: of a branch's inputs, each by itself; in a weight, inputs of the delta for the whole batch. `ranks`: of
    a LoRA's ranks, in each sample; of other types, rows of the delta, as in LyCORIS. `modules`: whole layers. What is
    left of inputs and ranks is scaled up.
    """

    inputs: float = 0.0
    ranks: float = 0.0
    modules: float = 0.0

    def module(self) -> bool:
        """Whether a layer is left out now."""
        return self.modules > 0 and torch.is_grad_enabled() and float(torch.rand(())) < self.modules

    def masked(self, delta: Tensor) -> Tensor:
        """A delta without some of its rows and columns; vectors are left whole."""
        if delta.dim() < 2 or not torch.is_grad_enabled():
            return delta
        for axis, share in ((0, self.ranks), (1, self.inputs)):
            if share:
                shape = [-1 if i == axis else 1 for i in range(delta.dim())]
                delta = delta * _kept(delta.shape[axis], share, delta).view(shape)
        return delta


@contextmanager
def attach(
    model: Patchable,
    layers: Layers,
    drops: Drops = Drops(),  # noqa: B008 - frozen
    strength: float = 1.0,
) -> Iterator[None]:
    """Let the model compute with the layers, at a strength, until the block ends. Raises BadConfig if one has no place.

    Afterwards every parameter is the very object it was, also after an error in the middle of a forward pass.
    """
    with ExitStack() as stack:
        for module, shares in _by_module(model, layers).items():
            branch = _as_branch(module, shares)
            if branch is not None:
                core = innermost(branch)
                if isinstance(core, Lora):
                    stack.callback(setattr, core, "rank_dropout", core.rank_dropout)
                    core.rank_dropout = drops.ranks
                stack.callback(module.register_forward_hook(_Branch(branch, Op.of(module), drops, strength)).remove)
            else:
                inside = _InWeight(shares, drops, strength)
                stack.callback(inside.leave)
                stack.callback(module.register_forward_pre_hook(inside.enter).remove)
                after = module.register_forward_hook(inside.leave, prepend=True, always_call=True)
                stack.callback(after.remove)
        yield


@dataclass(frozen=True)
class _Share:
    """One layer and its place; `owner` is the module whose forward pass reads the parameter."""

    key: LayerKey
    layer: Layer
    slot: Slot
    owner: nn.Module

    def names(self) -> list[tuple[str, bool]]:
        """(parameter of the slot's module, whether it is the bias) of all that the layer changes."""
        bias = [(self.slot.bias, True)] if self.layer.changes_bias and self.slot.bias is not None else []
        return ([(self.slot.weight, False)] if self.layer.changes_weight else []) + bias


def _by_module(model: Patchable, layers: Layers) -> dict[nn.Module, list[_Share]]:
    slots = model.slots()
    lost = sorted(str(key) for key in layers if key not in slots or not read_by_forward(slots[key]))
    if lost:
        raise BadConfig(
            f"{len(lost)} layers have no module in model {getattr(model, 'name', model.version)!r}, first: "
            f"{lost[0]!r}; train against the model the layers were made for"
        )
    owners = _owners(model)
    found: dict[nn.Module, list[_Share]] = {}
    for key, layer in layers.items():
        slot = slots[key]
        share = _Share(key, layer, slot, owners.get(slot.module, slot.module))
        if layer.changes_bias and (slot.bias is None or not hasattr(slot.module, slot.bias)):
            raise BadConfig(f"layer {key} changes a bias, and the model's layer cannot have one; leave it out")
        found.setdefault(share.owner, []).append(share)
    return found


def _owners(model: Patchable) -> dict[nn.Module, nn.Module]:
    """Output projections of fused attention -> the attention, which reads their parameters and never calls them."""
    modules = [slot.module for slot in model.slots().values()]
    for root in getattr(model, "roots", dict)().values():
        modules += root.modules()
    return {m.out_proj: m for m in modules if isinstance(m, nn.MultiheadAttention)}


def _as_branch(module: nn.Module, shares: list[_Share]) -> Layer | None:
    """The layer, if it is the module's only one and better as a branch."""
    (share, *more) = shares
    plain = share.slot.module is module and share.slot.rows is None
    if more or not plain or isinstance(module, nn.Embedding):
        return None
    weight = getattr(module, share.slot.weight)
    if weight.dim() < 2:
        return None
    if isinstance(innermost(share.layer), LoKr) and weight.dtype in WIDE:
        return None
    return share.layer if share.layer.has_branch(Op.of(module)) else None


class _Branch:
    """What a forward hook adds: the layer's branch.

    It is computed in the factors' float32 or wider; in the half precision that the base's own products have only on
    a GPU, whose products of halves sum in float32, and where the cast would cost more than the branch.
    """

    def __init__(self, layer: Layer, op: Op, drops: Drops, strength: float) -> None:
        self.layer, self.op, self.drops, self.strength = layer, op, drops, strength
        self.rows = bool(drops.ranks) and not isinstance(innermost(layer), Lora)
        self.dtype = next(layer.parameters()).dtype

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.drops.module():
            return output
        x, weight = args[0], module._parameters["weight"]
        assert weight is not None
        half = output.dtype in HALF
        dtype = output.dtype if half and output.is_cuda else self.dtype if half else _wider(self.dtype, output.dtype)
        with torch.autocast(output.device.type, enabled=False):
            x = x.to(dtype)
            if self.drops.inputs and torch.is_grad_enabled():
                x = nn.functional.dropout(x, self.drops.inputs)
            if not self.rows or not torch.is_grad_enabled():
                return self.layer.onto(output, x, self.op, weight, self.strength)
            change = self.layer.branch(x, self.op, weight) * self.strength
            axis = 1 if self.op.kind == "conv2d" else change.dim() - 1
            shape = [-1 if i == axis else 1 for i in range(change.dim())]
            change = change * _kept(change.shape[axis], self.drops.ranks, change).view(shape)
            return output + change.to(output.dtype)


class _InWeight:
    """Two hooks round a module's forward pass: in between, its parameters are `W + sum of deltas` in W's dtype.

    As plain tensors in the parameters' places, so that gradients reach the layers. The sums are rounded once, as
    `patch.merge` does it; a weight kept in 8 bits, which autocast widens anyway, stays float32.
    """

    def __init__(self, shares: list[_Share], drops: Drops, strength: float) -> None:
        self.shares, self.drops, self.strength = shares, drops, strength
        self.kept: list[tuple[nn.Module, str, nn.Parameter | None]] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        """Before the pass."""
        self.leave()  # an interrupt may have ended an earlier one
        whole = {(share.slot.module, name) for share in self.shares for name, _ in share.names()}
        active = [share for share in self.shares if not self.drops.module()]
        changed = {place: self._changed(*place, active) for place in sorted(whole, key=lambda place: place[1])}
        for (owner, name), tensor in changed.items():
            if tensor is not None:
                self.kept.append((owner, name, owner._parameters[name]))
                owner._parameters[name] = tensor  # type: ignore[assignment]

    def leave(self, *_: Any) -> None:
        """After it, whatever its end."""
        while self.kept:
            owner, name, parameter = self.kept.pop()
            owner._parameters[name] = parameter

    def _changed(self, owner: nn.Module, name: str, shares: list[_Share]) -> Tensor | None:
        """The parameter with every share's change; None without one."""
        changes = [(s, bias) for s in shares for own, bias in s.names() if own == name and s.slot.module is owner]
        if not changes:
            return None
        held = owner._parameters[name]
        base = held.detach() if held is not None else _no_bias(changes[0][0])
        with torch.autocast(base.device.type, enabled=False):
            wide = base.to(_wider(torch.float32, base.dtype))
            deltas: dict[Piece, Tensor] = {}
            for share, bias in changes:
                piece = Piece.of(share.slot)
                part = piece.view(wide)
                change = self.drops.masked(share.layer.bias_delta(part) if bias else share.layer.delta(part))
                change = change if self.strength == 1 else change * self.strength
                deltas[piece] = deltas[piece] + change if piece in deltas else change
            total = _sum(wide, deltas)
            return total.to(base.dtype) if base.dtype not in EIGHT_BIT else total


def _sum(base: Tensor, deltas: Mapping[Piece, Tensor]) -> Tensor:
    """`base` + deltas of the whole and of pieces of it, in the base's dtype."""
    total = base
    parts: list[Tensor] = []
    done = 0
    for piece, delta in sorted(deltas.items(), key=lambda item: item[0].start):
        if piece.stop is None:
            total = total + delta.to(base.dtype)
            continue
        parts += [base[done : piece.start], base[piece.start : piece.stop] + delta.to(base.dtype)]
        done = piece.stop
    return torch.cat([*parts, base[done:]]) if parts else total


def _no_bias(share: _Share) -> Tensor:
    """The zeros that stand for a bias the module does not have."""
    weight = getattr(share.slot.module, share.slot.weight)
    return torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype)


def _kept(count: int, share: float, like: Tensor) -> Tensor:
    """Which of `count` stay, scaled such that the mean does: 0 or 1 / (1 - share)."""
    return (torch.rand(count, device=like.device) >= share).to(like.dtype) / (1 - share)


def _wider(one: torch.dtype, two: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in (one, two) else one
