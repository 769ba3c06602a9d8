"""From an empty page to a network in a prompt, as a newcomer goes: the program of our own, with the miniature."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib_lora.miniature.subjects import SUBJECTS, photograph, write_photos
from lib_lora.standalone.server import ADDRESS, Standalone, serve
from tests.browser.person import Person

pytestmark = pytest.mark.browser
STEPS = 12


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    write_photos(photograph(SUBJECTS["bo"], 5, 128, seed=1), folder, "sks")
    for caption in folder.glob("*.txt"):
        caption.unlink()  # as a newcomer's are
    return folder


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[Standalone, str]]:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port = probe.getsockname()[1]
    running, page = serve(port, None, tmp_path / "networks", tmp_path / "runs", block=False)
    try:
        yield running, f"http://{ADDRESS}:{port}"
    finally:
        page.close()
        running.jobs.close(60)


def state(person: Person, words: str, seconds: float = 120) -> None:
    person.reads("#lorakit_progress", words, seconds)


def test_from_pictures_to_a_prompt(person: Person, program: tuple[Standalone, str], pictures: Path) -> None:
    running, address = program
    person.width(1280)
    person.open(address)
    person.press("Train")
    person.fill("#lorakit_folder", str(pictures))
    person.reads("#lorakit_pictures", "5")
    person.fill("#lorakit_name", "my toy")
    person.number("#lorakit_steps", STEPS)
    person.reads("#lorakit_estimate", "visits")
    person.press("Train", within="#lorakit_form")
    state(person, f"of {STEPS}")

    person.until(lambda: running.jobs.status().step >= 2, "two steps")
    person.press("Pause", within="#lorakit_running")
    state(person, "Paused")
    done = running.jobs.status().step
    assert 2 <= done < STEPS

    person.reload()
    person.press("Train")
    state(person, "Paused")
    person.until(lambda: person.value("#lorakit_folder") == str(pictures), "what was typed before the reload")
    person.press("Resume", within="#lorakit_running")
    state(person, "Finished", 240)
    status = running.jobs.status()
    assert (status.step, status.result) == (STEPS, running.folder / "my toy.safetensors")

    person.reads("#lorakit_after", "<lora:my toy:1>")
    person.press("Send the tag to txt2img")
    assert "<lora:my toy:1>" in person.value("#lorakit_prompt")
    person.one("#lorakit_generate").click()
    person.reads("#lorakit_report", "layers applied", 120)
    elsewhere = ("net::ERR_", "Unable to preload CSS for https://")  # gradio's own fonts; pages of other tests
    assert [line for line in person.complaints() if not any(words in line for words in elsewhere)] == []
