"""The server of the page: its routes, and how it starts and stops."""

import contextlib
import errno
import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from nst_cli.messages import reword_for_cli
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from nst_data.errors import NstError, UsageError

from .contents import Contents
from .security import Guard
from .template import PAGE, TYPES, page_files, template
from .thumbnails import IMAGE_PX, THUMB_PX

_MAX_ANSWER_BYTES = 10_000
_GRACE_SECONDS = 2


def create_app(contents: Contents, guard: Guard) -> ASGIApp:
    """The app that serves a view."""

    def page(request: Request) -> Response:
        return HTMLResponse(template().render(title=contents.ref, export=None))

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in page_files():
            raise HTTPException(404, "no such file")
        return Response((PAGE / name).read_bytes(), media_type=TYPES[Path(name).suffix])

    def overview(request: Request) -> Response:
        return JSONResponse(contents.overview())

    def grid(request: Request) -> Response:
        return JSONResponse(contents.grid(request.query_params))

    def detail(request: Request) -> Response:
        return JSONResponse(contents.detail(request.path_params["row"]))

    def image(side_px: int) -> Callable[[Request], Response]:
        def respond(request: Request) -> Response:
            try:
                name, jpeg = contents.jpeg(request.path_params["row"], side_px)
            except (NstError, OSError) as error:
                return PlainTextResponse(_error_line(error), 404)
            headers = {"ETag": f'"{name}"', "Cache-Control": "private, no-cache"}  # rows of other versions have the same URL
            if request.headers.get("if-none-match") == headers["ETag"]:
                return Response(status_code=304, headers=headers)
            return Response(jpeg, media_type="image/jpeg", headers=headers)

        return respond

    async def answers(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(400, "expected JSON")
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_ANSWER_BYTES:
                raise HTTPException(400, "an answer is a short line of JSON")
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            raise HTTPException(400, "expected JSON") from None
        return JSONResponse(await run_in_threadpool(contents.answer, payload))

    routes = [
        Route("/", page),
        Route("/static/{name}", static),
        Route("/api/overview", overview),
        Route("/api/grid", grid),
        Route("/api/image/{row:int}", detail),
        Route("/thumb/{row:int}", image(THUMB_PX)),
        Route("/image/{row:int}", image(IMAGE_PX)),
        Route("/api/answers", answers, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refuse, NstError: _refuse, Exception: _fail}
    return guard.wrap(Starlette(routes=routes, exception_handlers=handlers))


def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": _error_line(error)}, 400)


def _fail(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{type(error).__name__}: {_error_line(error)}"}, 500)


def _error_line(error: Exception) -> str:
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return " ".join(reword_for_cli(text).split()) or type(error).__name__


DEFAULT_PORT = 8765


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket; without a port, on the default port or, if that is taken, any free one. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (DEFAULT_PORT, 0) if port is None else (port,):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            if port is None and candidate and error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"`port` {port} is in use; choose another, or omit it for a free one") from None
            if error.errno == errno.EACCES:
                raise UsageError(f"`port` {port} requires administrator rights; choose one from 1024 to 65535") from None
            raise UsageError(f"`host` {host}: {error.strerror or error}; expected an address of this machine, such as 127.0.0.1") from None
        except OverflowError:
            listening.close()
            raise UsageError(f"`port` {port}: expected a number from 0 to 65535") from None
    raise AssertionError


class _Server(uvicorn.Server):
    """Leaves signals to `_stop_on_signals`, which handles them from before the address is announced."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _stop_on_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server without an error at Ctrl-C or SIGTERM; at the second one immediately."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def serve(app: ASGIApp, listening: socket.socket, announce: Callable[[], None]) -> None:
    """Announce the page, and serve it until Ctrl-C."""
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False, "date_header": False}
    config = uvicorn.Config(app, **options, ws="none", lifespan="off", proxy_headers=False, timeout_graceful_shutdown=_GRACE_SECONDS)
    server = _Server(config)
    with _stop_on_signals(server):
        announce()
        server.run(sockets=[listening])
