"""The webui's surface round our tag: settings, the built-in's list, UI reloads, pasting, plots, strengths over time."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.webui
PROMPT = "a red circle on a blue background"
TAGGED = f"{PROMPT} <lora:loud:1>"
AXES = ["[LoRA kit] Network", "[LoRA kit] Strength", "[LoRA kit] Block preset"]


def far(a: Any, b: Any) -> float:
    """Mean difference of two pictures, of 255."""
    return float(numpy.abs(a - b).mean())


def worst(a: Any, b: Any) -> int:
    return int(numpy.abs(a - b).max())


def test_the_built_ins_list_and_torch_while_we_apply(ours: Any, our_shots: Any) -> None:
    ours.picture(f"{PROMPT} <lora:loud:0.5:0.25>")
    seen = ours.probe()
    assert seen["loaded"] == [["loud", 0.5, 0.25]] and seen["comments"] == ["loud: 264 layers applied"]
    assert seen["owner"] == seen["alias"] == "LoraTag" and seen["bare"]
    assert [page for page in seen["pages"] if page.endswith("Lora")] == ["ExtraNetworksPageLora: Lora"]


def test_the_alias_lyco_and_nothing_after_it(ours: Any, our_shots: Any) -> None:
    tagged, _ = ours.picture(f"{PROMPT} <lyco:loud:1>")
    assert numpy.array_equal(tagged, our_shots.tagged)
    plain, _ = ours.picture(PROMPT)
    assert numpy.array_equal(plain, our_shots.plain)


def test_the_setting_gives_everything_back_and_takes_it_again(ours: Any, our_shots: Any, builtin: Any) -> None:
    clean = ours.probe()["weights"]
    ours.options(lorakit_apply=False)
    try:
        pictures = [ours.picture(TAGGED), ours.picture(PROMPT), ours.picture(TAGGED)]
        seen = ours.probe()
    finally:
        ours.options(lorakit_apply=True)
    assert seen["owner"] == seen["alias"] == "ExtraNetworkLora" and not seen["bare"]
    assert all("LoRA layers" not in text for _, text in pictures)
    for (picture, _), expected in zip(pictures, (builtin.tagged, builtin.plain, builtin.tagged)):
        assert numpy.array_equal(picture, expected)
    tagged, text = ours.picture(TAGGED)
    assert numpy.array_equal(tagged, our_shots.tagged) and "LoRA layers" in text
    ours.picture(PROMPT)
    assert ours.probe()["weights"] == clean


def test_the_built_ins_old_method_is_the_built_ins(ours: Any, our_shots: Any) -> None:
    ours.options(lora_functional=True)
    try:
        tagged, text = ours.picture(TAGGED)
        plain, _ = ours.picture(PROMPT)
    finally:
        ours.options(lora_functional=False)
    assert worst(tagged, our_shots.tagged) <= 1 and "LoRA layers" not in text
    assert numpy.array_equal(plain, our_shots.plain)
    assert numpy.array_equal(ours.picture(TAGGED)[0], our_shots.tagged)


def test_a_network_may_be_added_to_every_prompt(ours: Any, our_shots: Any) -> None:
    ours.options(sd_lora="loud")
    try:
        tagged, text = ours.picture(PROMPT)
    finally:
        ours.options(sd_lora="None")
    assert numpy.array_equal(tagged, our_shots.tagged) and "<lora:loud:1" in text


def test_reloading_the_page_changes_nothing(ours: Any, our_shots: Any) -> None:
    for _ in range(3):
        ours.reload()
        seen = ours.probe()
        assert seen["owner"] == seen["alias"] == "LoraTag" and seen["bare"]
        assert [label for label in ours.get("/probe/axes") if label.startswith("[LoRA kit]")] == AXES
        assert numpy.array_equal(ours.picture(TAGGED)[0], our_shots.tagged)
        assert numpy.array_equal(ours.picture(PROMPT)[0], our_shots.plain)


def test_api_and_cards_are_the_built_ins(ours: Any, our_shots: Any) -> None:
    (entry,) = ours.get("/sdapi/v1/loras")
    assert entry["name"] == "loud" and set(entry) == {"name", "alias", "path", "metadata"}
    assert ours.post("/sdapi/v1/refresh-loras", {}) is None
    assert 'data-name="loud"' in ours.get("/probe/cards")["html"]


def test_strengths_change_over_the_steps_and_in_the_hires_pass(ours: Any, our_shots: Any) -> None:
    stopped, _ = ours.picture(f"{PROMPT} <lora:loud:1:stop=4>")
    late, _ = ours.picture(f"{PROMPT} <lora:loud:1:start=4>")
    assert far(stopped, our_shots.plain) > 1 and far(stopped, our_shots.tagged) > 1
    assert far(late, our_shots.plain) < far(stopped, our_shots.plain), "early steps decide more of the picture"
    whole, _ = ours.picture(f"{PROMPT} <lora:loud:1:step=0-8>")
    assert numpy.array_equal(whole, our_shots.tagged)
    heun = [
        ours.picture(f"{PROMPT} <lora:loud:1{more}>", sampler_name="Heun")[0] for more in ("", ":stop=8", ":stop=4")
    ]
    assert numpy.array_equal(heun[0], heun[1]) and far(heun[0], heun[2]) > 1
    hires = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.7, "hr_upscaler": "Latent"}
    same, other = (ours.picture(f"{TAGGED[:-1]}{more}>", **hires)[0] for more in (":hr=1", ":hr=0"))
    assert numpy.array_equal(same, ours.picture(TAGGED, **hires)[0]) and far(same, other) > 1


def test_block_weights_by_preset_and_by_vector(ours: Any, our_shots: Any) -> None:
    none, _ = ours.picture(f"{PROMPT} <lora:loud:1:lbw=NONE>")
    assert numpy.array_equal(none, our_shots.plain)
    everything, _ = ours.picture(f"{PROMPT} <lora:loud:1:lbw=ALL>")
    assert numpy.array_equal(everything, our_shots.tagged)
    own = ours.data / "lorakit"
    own.mkdir(exist_ok=True)
    (own / "lbwpresets.txt").write_text(f"MINE:{','.join(['1'] * 9 + ['0'] * 8)}\n", encoding="utf-8")
    mine, _ = ours.picture(f"{PROMPT} <lora:loud:1:lbw=MINE>")
    vector, _ = ours.picture(f"{PROMPT} <lora:loud:1:lbw={','.join(['1'] * 9 + ['0'] * 8)}>")
    assert numpy.array_equal(mine, vector) and far(mine, our_shots.plain) > 1 and far(mine, our_shots.tagged) > 1


def test_an_unreadable_tag_is_told_and_the_others_work(ours: Any, our_shots: Any) -> None:
    picture, _ = ours.picture(f"{TAGGED} <lora:loud:lots>")
    assert numpy.array_equal(picture, our_shots.tagged)
    comments = ours.probe()["comments"]
    assert any("<lora:loud:lots>" in comment for comment in comments) and "loud: 264 layers applied" in comments


def test_pasting_finds_renamed_files_in_every_prompt(ours: Any, our_shots: Any) -> None:
    path = ours.networks / "loud.safetensors"
    renamed = ours.networks / "very, loud.safetensors"
    path.rename(renamed)
    try:
        tagged, infotext = ours.picture(f"{PROMPT} <lora:very, loud:1>")  # its hash is known from now on
        digest = our_shots.infotext.partition('Lora hashes: "loud: ')[2][:12]
        text = (
            "a <lora:old name:0.5>\nNegative prompt: b <lora:loud:1>\nSteps: 8, Sampler: Euler, CFG scale: 7, "
            f'Seed: 7, Size: 128x128, Lora hashes: "old name: {digest}, loud: {digest}", '
            'Hires prompt: "c, <lora:old name:1>", Hires negative prompt: "<lora:old name:1>"'
        )
        fields, again = (ours.pasted(pasted) for pasted in (text, infotext))
    finally:
        renamed.rename(path)
    assert fields["Prompt"] == "a <lora:very, loud:0.5>" and fields["Negative prompt"] == "b <lora:very, loud:1>"
    assert fields["Hires prompt"] == "c, <lora:very, loud:1>"
    assert fields["Hires negative prompt"] == "<lora:very, loud:1>"
    assert numpy.array_equal(tagged, our_shots.tagged)
    assert again["Prompt"] == f"{PROMPT} <lora:very, loud:1>"


def test_a_plot_of_strengths_and_presets(ours: Any, our_shots: Any) -> None:
    labels = ours.get("/probe/axes")
    strength, preset = labels.index(AXES[1]), labels.index(AXES[2])
    arguments = [strength, "0,1", [], preset, "", ["None", "NONE"], 0, "", []]
    plot = _plot(ours, arguments)
    assert far(plot[0][0], our_shots.plain) < 1 and far(plot[0][1], our_shots.tagged) < 1
    assert far(plot[1][0], our_shots.plain) < 1 and far(plot[1][1], our_shots.plain) < 1


def _plot(server: Any, axes: list[Any]) -> list[list[Any]]:
    """Cells by row and column of a plot without legend."""
    rest = server.get("/probe/plot")[len(axes) :]
    values = [False if label == "Draw legend" else value for label, value in rest]
    image, _ = server.picture(TAGGED, script_name="X/Y/Z plot", script_args=[*axes, *values])
    assert image.shape == (256, 256, 3), image.shape
    return [
        [image[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)] for column in range(2)]
        for row in range(2)
    ]


def test_bundled_embeddings_come_and_go_with_the_tag(ours: Any, our_shots: Any) -> None:
    tensors = load_file(str(ours.networks / "loud.safetensors"))
    width = next(t.shape[1] for name, t in tensors.items() if "q_proj.lora_down" in name)
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    path = ours.networks / "bundle.safetensors"
    save_file({**tensors, "bundle_emb.zqx.string_to_param.*": vectors}, str(path))
    try:
        without, _ = ours.picture(f"zqx {TAGGED}")
        bundled, text = ours.picture(f"zqx {PROMPT} <lora:bundle:1>")
        assert "zqx" in ours.probe()["embeddings"] and 'TI hashes: "zqx: bundle"' in text
        assert far(without, bundled) > 0.5
        ours.picture(PROMPT)
        assert "zqx" not in ours.probe()["embeddings"]
    finally:
        path.unlink()


def test_the_log_tells_of_no_exception(ours: Any, our_shots: Any) -> None:
    assert ours.faults() == []
