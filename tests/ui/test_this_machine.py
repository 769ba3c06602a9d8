"""The page of our own answers this machine's user alone: no other site's page in the same browser."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("gradio")
import gradio as gr

from lib_lora.ui import page

PRESSED: list[str] = []


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    with gr.Blocks() as blocks:
        text, button = gr.Textbox("rex"), gr.Button("Forget")
        button.click(PRESSED.append, [text], [], queue=False)
    blocks.lorakit_looks = {}
    page.launch(blocks, "127.0.0.1", number, block=False)
    yield number
    blocks.close()


def asked(port: int, path: str, headers: dict[str, str], data: bytes | None = None) -> int:
    request = Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except HTTPError as error:
        return int(error.code)


STRANGERS = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}]


@pytest.mark.parametrize("headers", STRANGERS)
@pytest.mark.parametrize("path", ["/", "/config", "/file=README.md", "/info", "/gradio_api/info"])
def test_another_sites_page_reads_nothing(port: int, path: str, headers: dict[str, str]) -> None:
    assert asked(port, path, headers) == 403


@pytest.mark.parametrize("headers", STRANGERS)
def test_another_sites_page_presses_no_button(port: int, headers: dict[str, str]) -> None:
    before = list(PRESSED)
    body = json.dumps({"data": ["rex"], "fn_index": 0, "session_hash": "x"}).encode()
    for path in ("/run/predict", "/api/predict", "/gradio_api/run/predict", "/upload", "/queue/join"):
        for kind in ({"Content-Type": "application/json"}, {"Content-Type": ""}):
            assert asked(port, path, {**headers, **kind}, body) == 403
    assert before == PRESSED


def test_another_sites_page_opens_no_socket(port: int) -> None:
    """Browsers let every page open a web socket to any place; gradio 3's queue takes buttons by it."""
    lines = ("GET /queue/join HTTP/1.1", f"Host: 127.0.0.1:{port}", "Origin: http://evil.example", "Upgrade: websocket")
    more = ("Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", "")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall("\r\n".join((*lines, *more)).encode())
        assert b" 403 " in wire.recv(200).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://localhost:7866"}, {"Host": "localhost:9000"}, {"Host": "[::1]:9000"}],
)
def test_this_machines_own_pages_are_served(port: int, headers: dict[str, str]) -> None:
    assert asked(port, "/", headers) == 200
