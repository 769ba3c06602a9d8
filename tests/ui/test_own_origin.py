"""The page names no other machine, neither in its HTML nor in the styles it loads; else it stays as it is."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("gradio")

from lib_lora.ui import page
from lib_lora.ui.own_origin import POLICY, without_foreign
from tests.browser.stage import Generator
from tests.ui.fake_trainer import FakeTrainer

LOADS = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


class Named(HTMLParser):
    """Every address in an attribute, and the style sheets and scripts among them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.addresses += [value for value in given.values() if re.match(r"(https?:)?//", value)]
        if tag == "link" and given.get("rel") == "stylesheet":
            self.styles.append(given["href"])
        if tag == "script" and "src" in given:
            self.scripts.append(given["src"])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    built = page.build(Generator(), FakeTrainer(tmp_path_factory.mktemp("page")))
    page.launch(built, "127.0.0.1", port, block=False)
    yield f"http://127.0.0.1:{port}/"
    built.close()


def asked(address: str) -> tuple[str, Any]:
    with urlopen(address, timeout=20) as answer:
        return answer.read().decode(), answer.headers


def is_foreign(address: str, own: str) -> bool:
    there = urlsplit(urljoin(own, address))
    return there.scheme != "data" and there.netloc != urlsplit(own).netloc


def test_the_served_page_names_no_other_machine(address: str) -> None:
    text, headers = asked(address)
    found = Named(text)
    assert [one for one in found.addresses if is_foreign(one, address)] == []
    assert found.scripts and "lorakit_folder" in text  # it is the page, and still whole
    assert headers["Content-Security-Policy"] == POLICY
    assert int(headers["Content-Length"]) == len(text.encode())


def test_its_styles_load_nothing_from_elsewhere(address: str) -> None:
    text, _ = asked(address)
    sheets = ["theme.css", *Named(text).styles]
    styles = [asked(urljoin(address, one))[0] for one in sheets if not is_foreign(one, address)]
    styles += re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL)
    loaded = [a or b for style in styles for a, b in LOADS.findall(style)]
    assert [one for one in loaded if is_foreign(one, address)] == []
    assert '"stylesheets":[]' in text.replace(" ", "")  # those of the theme, which gradio's script would load


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://cdn.example/x.js" async></script>',
        "<SCRIPT\n  async\n  src='//cdn.example/x.js'\n>\n</SCRIPT>",
        '<link rel="preconnect" href="https://fonts.example" />',
        '<link\n\trel="preconnect"\n\thref="https://fonts.example"\n\tcrossorigin="anonymous"\n/>',
        "<link rel=stylesheet href=http://fonts.example/a.css>",
        '<meta property="og:url" content="https://gradio.example/" />',
    ],
)
def test_elements_of_other_machines_go(element: str) -> None:
    assert without_foreign(f"<head>{element}<title>a</title></head>") == "<head><title>a</title></head>"


@pytest.mark.parametrize(
    "element",
    [
        '<script type="module" crossorigin src="./assets/index.js"></script>',
        '<script src="http://127.0.0.1:7866/assets/index.js"></script>',
        '<script src="http://[broken/index.js"></script>',
        '<link rel="stylesheet" href="/theme.css">',
        '<meta name="description" content="see https://example.org">',
        '<script>window.config = {"a": "\\u003clink href=https://example.org>"};</script>',
        '<a href="https://example.org">what one may read</a>',
    ],
)
def test_everything_else_stays(element: str) -> None:
    assert without_foreign(element) == element


def test_another_kind_of_answer_is_not_touched(address: str) -> None:
    text, headers = asked(address + "theme.css")
    assert text and "Content-Security-Policy" not in headers


def test_a_question_for_the_head_alone_is_answered(address: str) -> None:
    """lorakit.js asks so whether the server is there."""
    with urlopen(Request(address, method="HEAD"), timeout=20) as answer:
        assert answer.status == 200 and answer.read() == b""


def test_what_is_looked_for_would_be_found() -> None:
    found = Named('<link href="//fonts.example"><script src="https://cdn.example/a.js"></script><img src="/own.png">')
    assert [is_foreign(one, "http://127.0.0.1:1/") for one in found.addresses] == [True, True]
