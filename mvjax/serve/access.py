"""Who may connect: pages of our own or of stated origins, and, if there is a token, those who have it."""

from __future__ import annotations

import dataclasses
import hmac
import urllib.parse

from aiohttp import web

COOKIE = "mvjax_token"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclasses.dataclass(frozen=True)
class Access:
    """The rules of a server.

    Attributes:
      token: a secret in the query (`token`), a bearer header, or the cookie that our page sets; None: none
        is asked for.
      origins: of pages elsewhere that may connect, such as "https://example.org"; "*": all.
      host: that the server listens at. At a loopback address only its names, and `origins`, are served:
        else any site could reach it by a name that points here (DNS rebinding).
    """

    token: str | None
    origins: tuple[str, ...]
    host: str

    def __post_init__(self) -> None:
        """Checks that clients can send the token."""
        if self.token is not None and not self.token.isprintable():
            raise ValueError("token: expected printable UTF-8, got other bytes; choose another")

    def check(self, request: web.Request) -> None:
        """Raises HTTPForbidden or HTTPUnauthorized."""
        origin = request.headers.get("Origin")
        if not self._is_known_host(request.host):
            raise web.HTTPForbidden(text="unknown Host; state its --origin\n")
        if origin is not None and not self._may_come_from(origin, request.host):
            raise web.HTTPForbidden(text="this Origin may not connect; state it as --origin\n")
        if not self.has_token(request):
            raise web.HTTPUnauthorized(text="a token is needed: ?token=...\n")

    def has_token(self, request: web.Request) -> bool:
        """Whether a request has the token, or none is asked for."""
        if self.token is None:
            return True
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = (request.query.get("token"), bearer, request.cookies.get(COOKIE))
        secret = self.token.encode()
        return any(hmac.compare_digest((g or "").encode(errors="replace"), secret) for g in given)

    def _is_known_host(self, host: str) -> bool:
        if self.host not in _LOOPBACK or "*" in self.origins:
            return True
        stated = {urllib.parse.urlsplit(origin).netloc for origin in self.origins}
        return _name(host) in _LOOPBACK or host in stated

    def _may_come_from(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin in self.origins:
            return True
        return _netloc(origin) == host


def _name(host: str) -> str:
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urllib.parse.urlsplit(origin).netloc
    except ValueError:
        return ""
