"""Who may see the page: whoever has the token, under an address of this machine and not from another page."""

import base64
import hashlib
import ipaddress
import platform
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOCAL = {"127.0.0.1", "localhost"}
_RELOAD_SCRIPT = 'location.replace("/?" + location.hash)'  # now this page is the origin; after a reload it would still be the other
_RELOAD_PAGE = f"<!doctype html><title>nst look</title><script>{_RELOAD_SCRIPT}</script>"
_RELOAD_POLICY = f"default-src 'none'; script-src 'sha256-{base64.b64encode(hashlib.sha256(_RELOAD_SCRIPT.encode()).digest()).decode()}'"


class Guard:
    """Checks every request. `host` is what the server listens on; it is allowed in addition to the names of this machine."""

    def __init__(self, host: str = "127.0.0.1", token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(32)
        self.cookie = "nst_look_" + hashlib.sha256(self.token.encode()).hexdigest()[:12]  # cookies are shared by all ports
        self._session, self._host = secrets.token_urlsafe(32), host

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Wrap an app so that it only answers permitted requests, with headers that restrict browsers to what it needs."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    for name, value in HEADERS.items():
                        headers.setdefault(name, value)
                await send(message)

            if scope["type"] == "lifespan":
                await app(scope, receive, send)
            elif scope["type"] == "http":
                await (self._refusal(Request(scope)) or app)(scope, receive, with_headers)

        return guarded

    def _refusal(self, request: Request) -> Response | None:
        """The response to a request that may not pass, else None; the request with the token gets a cookie and is redirected."""
        host = ",".join(request.headers.getlist("host"))
        if not self._is_allowed_host(host):
            return _error_response(403, f"host {host[:100]!r}: expected 127.0.0.1 or localhost")
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return _error_response(403, "a page of another origin may not ask this server")
        is_page = request.url.path == "/" and request.method == "GET"
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and not is_page:
            return _error_response(403, "a page of another origin may not ask this server")
        if request.method == "POST" and origin is None:
            return _error_response(403, "expected a request of the page, which names its origin")
        token = request.query_params.get("token")
        if is_page and token is not None:
            return (
                self._grant_session()
                if _is_equal(token, self.token)
                else _error_response(403, "wrong token; open the address that `nst look` printed")
            )
        if not _is_equal(request.cookies.get(self.cookie, ""), self._session):
            if is_page and site not in ("same-origin", "none"):  # browsers send no strict cookie when a link on another site is followed
                return HTMLResponse(_RELOAD_PAGE, 401, {"Content-Security-Policy": _RELOAD_POLICY})
            return _error_response(401, "open the address with the token that `nst look` printed")
        return None

    def _grant_session(self) -> Response:
        response = RedirectResponse("/", 303)
        response.set_cookie(self.cookie, self._session, httponly=True, samesite="strict", path="/")
        return response

    def _is_allowed_host(self, host: str) -> bool:
        try:
            name, _ = urlsplit(f"//{host}").hostname, urlsplit(f"//{host}").port
        except ValueError:
            return False
        if name is None or host != host.strip() or set(host) & set("@/\\?#"):
            return False
        if name in _LOCAL or name == self._host.lower():
            return True
        return self._host not in _LOCAL and (_is_address(name) or name == platform.node().lower())


def _is_address(name: str) -> bool:
    """Whether a host is an IP address, which unlike a name cannot be made to point elsewhere."""
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _is_equal(value: str, expected: str) -> bool:
    return secrets.compare_digest(value.encode(), expected.encode())


def _error_response(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
