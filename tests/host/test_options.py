"""Settings of ours, and of the built-in where it is disabled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lib_lora.host.builtin import BuiltinLora
from lib_lora.host.options import BUILTIN, Settings


def _settings(webui: Any) -> Settings:
    return Settings(webui, BuiltinLora(webui))


def test_what_the_built_in_has_is_not_added_again(webui: Any) -> None:
    labels = webui.shared.opts.data_labels
    theirs = {key: SimpleNamespace() for key in ("sd_lora", *BUILTIN)}
    labels.update(theirs)
    _settings(webui).add(lambda: ["a"], lambda: None)
    assert set(labels) == {*theirs, "lorakit_apply"} and all(labels[key] is theirs[key] for key in theirs)


def test_without_it_its_settings_are_there_under_its_names(webui: Any) -> None:
    changed: list[str] = []
    _settings(webui).add(lambda: ["a", "b"], lambda: changed.append("x"))
    labels = webui.shared.opts.data_labels
    assert {"sd_lora", "lora_preferred_name", "lora_in_memory_limit", "lorakit_apply"} <= set(labels)
    assert labels["sd_lora"].args[1]() == {"choices": ["None", "a", "b"]}
    assert all(option.section for option in labels.values())
    labels["lorakit_apply"].onchange()
    assert changed == ["x"]


def test_values_are_read_anew_and_nonsense_is_bounded(webui: Any) -> None:
    settings, opts = _settings(webui), webui.shared.opts
    assert settings.apply and settings.hashes and settings.added_network is None and settings.keep == 0
    assert (
        settings.default_strength == "1.0" and settings.hide_unknown_for == () and settings.warnings == (False, False)
    )
    opts.lora_in_memory_limit, opts.sd_lora, opts.lora_hide_unknown_for_versions = 2.0, "cat", None
    assert (settings.keep, settings.added_network, settings.hide_unknown_for) == (2, "cat", ())
    opts.lora_in_memory_limit, opts.sd_lora = -1, ""
    assert settings.keep == 0 and settings.added_network is None


def test_the_old_method_counts_only_where_the_built_in_can_do_it(webui: Any, builtin: Any) -> None:
    settings = _settings(webui)
    webui.shared.opts.lora_functional = True
    assert settings.functional and not settings.apply
    webui.extensions.active = list  # the option may still lie in config.json
    assert not settings.functional and settings.apply
