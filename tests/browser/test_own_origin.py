"""The page of our own, drawn by Chromium: it asks nobody but the server it came from."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from lib_lora.ui import page
from tests.browser.person import Person
from tests.browser.stage import Generator
from tests.ui.fake_trainer import FakeTrainer

pytestmark = pytest.mark.browser
ASKED = "return performance.getEntriesByType('resource').map((one) => one.name)"


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    built = page.build(Generator(), FakeTrainer(tmp_path_factory.mktemp("page")))
    page.launch(built, "127.0.0.1", port, block=False)
    yield f"http://127.0.0.1:{port}"
    built.close()


def test_nobody_else_is_asked(person: Person, address: str) -> None:
    person.complaints()
    person.open(address)
    person.press("Train")
    person.reads("#lorakit_progress", "Ready to train")
    person.press("Captions")
    found = person.driver.execute_script(ASKED)  # with those that failed
    assert any(one.startswith(address) for one in found)
    assert [one for one in found if not one.startswith((f"{address}/", "data:", "blob:"))] == []
    assert [line for line in person.complaints() if "://" in line.replace(address, "")] == []


def test_the_browser_keeps_scripts_from_asking(person: Person, address: str) -> None:
    person.open(address)
    refused = person.driver.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
        "fetch('http://elsewhere.example/').catch(() => setTimeout(() => done('asked'), 2000));"
    )
    assert refused == "connect-src"
    person.complaints()
