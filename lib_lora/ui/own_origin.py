"""The page asks no other machine for anything: what gradio's own template names elsewhere is left out of it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from lib_lora.ui.this_machine import HOSTS, Ask, Message, Tell

# Scripts, links and facts for social networks, with the address each names; `<` in gradio's data is written as \u003c
NAMES = re.compile(
    r"""<(?:script|link|meta)\b[^<>]*?\b(?:src|href|content)\s*=\s*["']?(?P<address>(?:https?:)?//[^\s"'<>]+)[^<>]*>"""
    r"""(?:\s*</script\s*>)?""",
    re.IGNORECASE,
)
# A second lock, for what scripts may ask for later. 'self' covers web sockets in some browsers only.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self' data: blob: ws://127.0.0.1:* ws://localhost:*"
)


def without_foreign(html: str) -> str:
    """The page without the elements that load from, or point to, another machine."""
    return NAMES.sub(lambda found: found.group() if _own(found["address"]) else "", html)


def _own(address: str) -> bool:
    try:
        return urlsplit(address).hostname in HOSTS
    except ValueError:  # no address at all: browsers ask nobody
        return True


class OwnOriginOnly:
    """ASGI middleware: pages name no other machine, and browsers are told to ask none."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Ask, send: Tell) -> None:
        """See the class."""
        if scope["type"] == "http":
            await self.app(scope, receive, _Pages(send))
        else:
            await self.app(scope, receive, send)


class _Pages:
    """Holds an HTML answer back until it is whole; everything else goes by as it comes."""

    def __init__(self, send: Tell) -> None:
        self.send = send
        self.start: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_page(message):
            self.start = message
        elif self.start is None or message["type"] != "http.response.body":
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_page()

    async def _send_page(self) -> None:
        start, self.start = self.start, None
        assert start is not None
        as_is = "utf-8", "surrogateescape"
        body = without_foreign(self.body.decode(*as_is)).encode(*as_is)  # to a HEAD request there is none
        kept = [(name, value) for name, value in start["headers"] if not body or name.lower() != b"content-length"]
        told = [(b"content-length", str(len(body)).encode())] if body else []
        policy = (b"content-security-policy", POLICY.encode())
        await self.send({**start, "headers": [*kept, *told, policy]})
        await self.send({"type": "http.response.body", "body": body})


def _is_page(message: Message) -> bool:
    headers = {name.lower(): value for name, value in message.get("headers", ())}
    return headers.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in headers
