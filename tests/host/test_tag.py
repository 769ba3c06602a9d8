"""The tag's owner: what it asks of the runtime, what it tells, and what it does with a model it does not know."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_lora.errors import WrongBaseModel
from lib_lora.host.tag import LoraTag
from tests.host.fakes import Picture, at, weight, words


def test_applies_reports_and_restores_bit_for_bit(webui: Any, tag: LoraTag, picture: Any) -> None:
    original = weight(webui).detach().clone()
    tag.activate(picture, [words("loud", "0.5")])
    assert torch.allclose(weight(webui), original + 0.5 * 2)
    assert picture.comments == ["loud: 1 layers applied"]
    assert picture.extra_generation_params["LoRA layers"] == "loud 1 of 1"
    tag.activate(picture, [])
    assert torch.equal(weight(webui), original)
    assert "LoRA layers" not in picture.extra_generation_params


def test_cached_texts_are_dropped_when_and_only_when_something_changed(tag: LoraTag, picture: Any, loud: Path) -> None:
    tag.activate(picture, [words("loud")])
    assert picture.cached_c[0] is None and picture.cached_uc[0] is None
    picture.cached_c[0] = "new"
    tag.activate(picture, [words("loud")])
    assert picture.cached_c[0] == "new"
    loud.touch()
    tag.activate(picture, [words("loud")])
    assert picture.cached_c[0] is None


def test_a_hires_pass_without_networks_keeps_the_cached_texts(tag: LoraTag, picture: Any) -> None:
    tag.activate(picture, [])
    picture.cached_c[0] = "new"
    picture.is_hr_pass = True
    tag.activate(picture, [])
    assert picture.cached_c[0] == "new"


def test_another_text_strength_in_the_hires_pass_drops_them(tag: LoraTag, picture: Any) -> None:
    picture.cached_hr_c = ["key", "states"]
    tag.activate(picture, [words("loud", "1", "hr=0.5")])
    picture.cached_hr_c[0] = "new"
    picture.is_hr_pass = True
    tag.activate(picture, [words("loud", "1", "hr=0.5")])
    assert picture.cached_hr_c[0] is None


def test_a_bad_tag_and_a_missing_file_are_told_and_the_rest_is_applied(tag: LoraTag, picture: Any) -> None:
    tag.activate(picture, [words("loud", "much"), words("nosuch"), words("loud")])
    text = "\n".join(picture.comments)
    assert "<lora:loud:much>" in text and "'nosuch'" in text and "loud: 1 layers applied" in text


@pytest.mark.parametrize("option", ["disable_extension_access", "hide_ui_dir_config", None])
def test_where_others_can_reach_the_page_comments_do_not_tell_where_folders_lie(
    webui: Any, tag: LoraTag, picture: Any, loud: Path, monkeypatch: pytest.MonkeyPatch, option: str | None
) -> None:
    if option is not None:
        setattr(webui.shared.cmd_opts, option, True)
    broken = loud.parent / "sub" / "broken.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"no network")
    tag.activate(picture, [words("nosuch"), words("broken"), words("loud")])

    def lost(*_args: Any) -> Any:
        raise OSError(5, "input/output error", str(broken))

    monkeypatch.setattr(tag.runtime, "activate", lost)
    tag.activate(picture, [words("loud")])
    missing, unreadable, failed = (next(c for c in picture.comments if w in c) for w in ("'nosuch'", "sub", "input"))
    for comment, whole in ((missing, loud.parent), (unreadable, broken), (failed, broken)):
        assert (str(whole) in comment) == (option is None), comment
        assert (str(loud.parent.parent) in comment) == (option is None), comment
    assert "in Lora;" in missing or option is None
    assert "sub/broken.safetensors is not a readable" in unreadable and "sub/broken.safetensors'" in failed


@pytest.mark.parametrize("console", [True, False])
def test_a_missing_file_is_told_on_the_console_if_the_setting_says_so(
    webui: Any, tag: LoraTag, picture: Any, caplog: pytest.LogCaptureFixture, console: bool
) -> None:
    webui.shared.opts.lora_not_found_warning_console = console
    tag.activate(picture, [words("nosuch"), words("loud")])
    assert ("Lora not found: nosuch" in caplog.text) == console


def test_the_built_ins_setting_adds_its_network_once(webui: Any, tag: LoraTag, picture: Any) -> None:
    webui.shared.opts.sd_lora = "loud"
    webui.shared.opts.extra_networks_default_multiplier = 1.0
    tag.activate(picture, [])
    picture.is_hr_pass = True
    tag.activate(picture, [])
    assert picture.all_prompts == ["a<lora:loud:1.0>"] and "loud: 1 layers applied" in picture.comments
    tag.activate(picture, [words("loud", "1.0")])
    assert picture.extra_generation_params["LoRA layers"] == "loud 1 of 1"


def test_the_cache_of_networks_has_the_size_of_the_setting(webui: Any, tag: LoraTag, picture: Any) -> None:
    webui.shared.opts.lora_in_memory_limit = 0
    tag.activate(picture, [words("loud")])
    assert not tag.runtime._cache
    webui.shared.opts.lora_in_memory_limit = 3
    tag.activate(picture, [words("loud", "0.5")])
    assert len(tag.runtime._cache) == 1


def test_hashes_of_infotext_are_the_webuis(webui: Any, tag: LoraTag, picture: Any, loud: Path) -> None:
    import hashlib

    data = loud.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]
    loud.rename(loud.with_name("loud, very.safetensors"))
    tag.activate(picture, [words("loud, very"), words("nosuch")])
    assert picture.extra_generation_params["Lora hashes"] == f"loud very: {digest}"
    webui.shared.opts.lora_add_hashes_to_infotext = False
    picture.extra_generation_params.clear()
    tag.activate(picture, [words("loud, very")])
    assert "Lora hashes" not in picture.extra_generation_params


class TestWithTheBuiltIn:
    def test_an_unknown_model_is_handed_to_it_with_a_message(
        self, webui: Any, builtin: Any, tag: LoraTag, picture: Any
    ) -> None:
        tag.host.builtin.take(tag)
        tag.activate(picture, [words("loud")])
        del webui.shared.sd_model.model.diffusion_model.input_blocks
        tag.host.model_loaded(webui.shared.sd_model)
        params = [words("loud")]
        tag.activate(picture, params)
        assert builtin.extra_network_lora.calls == [params]
        assert "the webui's own extension" in picture.comments[-1] and "UNet" in picture.comments[-1]
        # The webui now activates every owner it has not called yet, with nothing: the built-in must not be among them.
        assert webui.extra_networks.extra_network_registry["lora"] is tag
        assert torch.nn.Linear.forward is builtin.network_Linear_forward
        tag.deactivate(picture)
        assert builtin.extra_network_lora.ended == [picture]

    @pytest.mark.parametrize("option", ["lorakit_apply", "lora_functional"])
    def test_a_setting_is_obeyed_at_once_even_without_our_script(
        self, webui: Any, builtin: Any, tag: LoraTag, picture: Any, option: str
    ) -> None:
        tag.host.builtin.take(tag)
        original = weight(webui).detach().clone()
        tag.activate(picture, [words("loud")])
        setattr(webui.shared.opts, option, option == "lora_functional")
        tag.activate(picture, [words("loud")])
        assert len(builtin.extra_network_lora.calls) == 1 and torch.equal(weight(webui), original)
        setattr(webui.shared.opts, option, option != "lora_functional")
        tag.activate(picture, [words("loud")])
        assert torch.allclose(weight(webui), original + 2)
        assert torch.nn.Linear.forward is not builtin.network_Linear_forward
        tag.deactivate(picture)
        assert builtin.extra_network_lora.ended == []

    def test_its_list_tells_what_is_applied(
        self, webui: Any, builtin: Any, tag: LoraTag, picture: Any, loud: Path
    ) -> None:
        tag.host.builtin.take(tag)
        tag.activate(picture, [words("loud", "0.5", "0.25"), words("nosuch"), words("loud", "1", "stop=4")])
        told = [(n.name, n.te_multiplier, n.unet_multiplier, n.mentioned_name) for n in builtin.loaded_networks]
        assert told == [("loud", 0.5, 0.25, "loud"), ("loud", 1.0, 1.0, "loud")]
        assert builtin.loaded_networks[0].network_on_disk.filename == str(loud)
        tag.step(at(6, picture))
        assert builtin.loaded_networks[1].unet_multiplier == 0
        tag.activate(picture, [])
        assert builtin.loaded_networks == []

    def test_regional_prompter_in_latent_mode_gets_the_built_in(
        self, webui: Any, builtin: Any, tag: LoraTag, picture: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tag.host.builtin.take(tag)
        monkeypatch.setitem(sys.modules, "scripts.latent", SimpleNamespace(lactive=True))
        tag.activate(picture, [words("loud")])
        assert len(builtin.extra_network_lora.calls) == 1 and "Regional Prompter" in picture.comments[0]


def test_an_unknown_model_without_the_built_in_is_told(webui: Any, tag: LoraTag, picture: Any) -> None:
    del webui.shared.sd_model.model.diffusion_model.input_blocks
    tag.activate(picture, [words("loud")])
    assert picture.comments[0].startswith("no network was applied: ")


def test_an_unforeseen_error_is_told_and_leaves_the_weights_clean(
    webui: Any, tag: LoraTag, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = weight(webui).detach().clone()
    tag.activate(picture, [words("loud")])

    def broken(*_args: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(tag.runtime, "activate", broken)
    tag.activate(picture, [words("loud")])
    assert "division by zero" in picture.comments[-1]
    assert torch.equal(weight(webui), original)


def test_exclusive_holds_the_lock_cleans_the_model_and_proves_it(webui: Any, tag: LoraTag, picture: Any) -> None:
    original = weight(webui).detach().clone()
    tag.activate(picture, [words("loud")])

    def job() -> str:
        assert webui.call_queue.queue_lock.locked() and torch.is_grad_enabled()
        assert torch.equal(weight(webui), original) and webui.shared.loaded_hypernetworks == []
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


def test_cached_texts_of_other_kinds_of_pictures_are_dropped_as_well(webui: Any, tag: LoraTag, loud: Path) -> None:
    """img2img has no hires pass; txt2img's hires texts are kept on the webui's class."""
    kept = webui.processing.StableDiffusionProcessingTxt2Img.cached_hr_c
    tag.activate(Picture(), [words("loud")])
    kept[0] = "with the file as it was"
    loud.touch()
    tag.activate(Picture(), [words("loud")])
    assert kept[0] is None


def test_the_added_network_is_not_for_the_empty_text_of_a_new_checkpoint(
    webui: Any, tag: LoraTag, picture: Any, caplog: pytest.LogCaptureFixture
) -> None:
    webui.shared.opts.sd_lora = "loud"
    picture.all_prompts = None  # as in the picture that the webui makes up for it
    original = weight(webui).detach().clone()
    tag.activate(picture, [])
    assert torch.equal(weight(webui), original) and not picture.comments and not caplog.records


def test_a_file_that_is_deleted_in_mid_picture_stays_applied(
    webui: Any, builtin: Any, tag: LoraTag, picture: Any, loud: Path
) -> None:
    original = weight(webui).detach().clone()
    tag.host.builtin.release()
    tag.activate(picture, [words("loud", "0.5", "start=2")])
    loud.unlink()
    tag.step(at(2, picture))
    assert torch.allclose(weight(webui), original + 1)
    assert [net.unet_multiplier for net in builtin.loaded_networks] == [0.5]


def test_after_the_scripts_are_unloaded_nothing_is_applied_any_more(webui: Any, tag: LoraTag, picture: Any) -> None:
    """A picture may still be on its way, and the next owner takes the weights it finds for the original ones."""
    original = weight(webui).detach().clone()
    tag.activate(picture, [words("loud", "1", "stop=4")])
    tag.close()
    assert torch.equal(weight(webui), original)
    tag.step(at(3, picture))
    tag.activate(picture, [words("loud")])
    assert torch.equal(weight(webui), original) and "loaded anew" in picture.comments[-1]


def test_unloading_waits_for_what_is_being_merged(
    webui: Any, tag: LoraTag, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = weight(webui).detach().clone()
    merging, go_on = threading.Event(), threading.Event()
    apply = tag.runtime.patcher.apply

    def slowly(model: Any, loads: Any) -> Any:
        merging.set()
        assert go_on.wait(10)
        return apply(model, loads)

    monkeypatch.setattr(tag.runtime.patcher, "apply", slowly)
    drawing = threading.Thread(target=tag.activate, args=(picture, [words("loud")]))
    closing = threading.Thread(target=tag.close)
    drawing.start()
    assert merging.wait(10)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go_on.set()
    drawing.join()
    closing.join()
    assert torch.equal(weight(webui), original)
