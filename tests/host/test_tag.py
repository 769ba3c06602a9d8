"""The tag's owner: what it asks of the runtime, what it tells, and what it does with a model it does not know."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_lora.errors import WrongBaseModel
from lib_lora.files.library import NetworkLibrary
from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.tag import LoraTag
from lib_lora.host.webui import WebuiHost
from lib_lora.runtime import Runtime


def _params(*items: Any) -> SimpleNamespace:
    return SimpleNamespace(items=list(items))


@pytest.fixture
def picture() -> Any:
    comments: list[str] = []
    p = SimpleNamespace(comments=comments, comment=comments.append, extra_generation_params={}, all_prompts=["a"])
    p.cached_c, p.cached_uc = ["key", "states"], ["key", "states"]
    return p


@pytest.fixture
def tag(webui: Any, tmp_path: Path) -> LoraTag:
    host = WebuiHost(webui, BuiltinLora(webui))
    folder = tmp_path / "Lora"
    folder.mkdir()
    conv_in = {"lora_down.weight": torch.ones(2, 4, 3, 3), "lora_up.weight": torch.ones(8, 2, 1, 1)}
    save_file(
        {f"lora_unet_conv_in.{name}": tensor for name, tensor in conv_in.items()}, str(folder / "loud.safetensors")
    )
    made = LoraTag(host, Runtime(NetworkLibrary([folder])))
    host.restore = made.restore
    return made


def _weight(webui: Any) -> Any:
    return webui.shared.sd_model.model.diffusion_model.input_blocks[0][0].weight


def test_applies_reports_and_restores_bit_for_bit(webui: Any, tag: LoraTag, picture: Any) -> None:
    original = _weight(webui).detach().clone()
    tag.activate(picture, [_params("loud", "0.5")])
    assert torch.allclose(_weight(webui), original + 0.5 * 2)
    assert picture.comments == ["loud: 1 layers applied"]
    assert picture.extra_generation_params["LoRA layers"] == "loud 1 of 1"
    tag.activate(picture, [])
    assert torch.equal(_weight(webui), original)


def test_cached_texts_are_dropped_when_and_only_when_something_changed(tag: LoraTag, picture: Any) -> None:
    tag.activate(picture, [_params("loud")])
    assert picture.cached_c[0] is None and picture.cached_uc[0] is None
    picture.cached_c[0] = "new"
    tag.activate(picture, [_params("loud")])
    assert picture.cached_c[0] == "new"
    path = tag.runtime.library.find("loud").path
    path.write_bytes(path.read_bytes() + b"")
    path.touch()
    tag.activate(picture, [_params("loud")])
    assert picture.cached_c[0] is None


def test_a_bad_tag_and_a_missing_file_are_told_and_the_rest_is_applied(tag: LoraTag, picture: Any) -> None:
    tag.activate(picture, [_params("loud", "much"), _params("nosuch"), _params("loud")])
    text = "\n".join(picture.comments)
    assert "<lora:loud:much>" in text and "'nosuch'" in text and "loud: 1 layers applied" in text


def test_the_built_ins_setting_adds_its_network(webui: Any, tag: LoraTag, picture: Any) -> None:
    webui.shared.opts.sd_lora = "loud"
    webui.shared.opts.extra_networks_default_multiplier = 1.0
    tag.activate(picture, [])
    assert picture.all_prompts == ["a<lora:loud:1.0>"] and "loud: 1 layers applied" in picture.comments


def test_an_unknown_model_is_handed_to_the_built_in_with_a_message(
    webui: Any, builtin: Any, tag: LoraTag, picture: Any
) -> None:
    tag.host.builtin.take(tag)
    original = _weight(webui).detach().clone()
    tag.activate(picture, [_params("loud")])
    webui.shared.sd_model.conditioner = object()
    tag.host.model_loaded(webui.shared.sd_model)
    params = [_params("loud")]
    tag.activate(picture, params)
    assert builtin.extra_network_lora.calls == [params]
    assert "own Lora extension" in picture.comments[-1] and "SDXL" in picture.comments[-1]
    assert torch.equal(_weight(webui), original)


def test_an_unforeseen_error_is_told_and_leaves_the_weights_clean(
    webui: Any, tag: LoraTag, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _weight(webui).detach().clone()
    tag.activate(picture, [_params("loud")])

    def broken(*_args: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(tag.runtime, "activate", broken)
    tag.activate(picture, [_params("loud")])
    assert "division by zero" in picture.comments[-1]
    assert torch.equal(_weight(webui), original)


def test_exclusive_holds_the_lock_cleans_the_model_and_proves_it(webui: Any, tag: LoraTag, picture: Any) -> None:
    original = _weight(webui).detach().clone()
    tag.activate(picture, [_params("loud")])

    def job() -> str:
        assert webui.call_queue.queue_lock.locked() and torch.is_grad_enabled()
        assert torch.equal(_weight(webui), original) and webui.shared.loaded_hypernetworks == []
        return "done"

    with torch.no_grad():
        assert tag.host.exclusive(job) == "done"
    assert webui.log == ["begin LoRA training", "unet None", "tome 0", "circular False", "end"]
    assert webui.shared.loaded_hypernetworks == ["left over"] and not webui.call_queue.queue_lock.locked()


def test_a_streamed_model_is_refused_with_the_way_out(webui: Any, tag: LoraTag) -> None:
    webui.shared.sd_model.lowvram = True
    with pytest.raises(WrongBaseModel, match="--medvram"):
        tag.host.exclusive(lambda: None)
    assert webui.log[-1] == "end" and not webui.call_queue.queue_lock.locked()
