"""Only this machine's own programs and pages may ask: no page of another site in the same browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

HOSTS = ("127.0.0.1", "localhost", "::1")
REFUSED = "only programs and pages of this machine may ask; use http://127.0.0.1"
Message = MutableMapping[str, Any]
Ask = Callable[[], Awaitable[Message]]
Tell = Callable[[Message], Awaitable[None]]


def is_own(host: str, origin: str | None) -> bool:
    """Whether a request's `Host` and `Origin` say that this machine asks itself.

    Another site's page gives its own origin; one whose name was made to lead here (DNS rebinding) gives that name.
    """
    try:
        asked, own = urlsplit(origin or "").hostname, urlsplit(f"//{host}").hostname
    except ValueError:  # no address at all
        return False
    return own in HOSTS and (origin is None or asked in HOSTS)


class ThisMachineOnly:
    """ASGI middleware: everything else is answered with 403, web sockets too, which browsers open to any place."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Ask, send: Tell) -> None:
        """See the class."""
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        if scope["type"] not in ("http", "websocket") or is_own(headers.get(b"host", ""), headers.get(b"origin")):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            kind = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": kind})
            await send({"type": "http.response.body", "body": REFUSED.encode()})
