"""Showing the page in a browser: its address is printed on standard output, and the server runs until Ctrl-C."""

import os
import sys
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path
from threading import Thread

from .contents import Contents
from .security import Guard
from .server import create_app, listen, serve

_LOCAL = ("127.0.0.1", "localhost")


def show(contents: Contents, host: str, port: int | None, opens_browser: bool, fragment: str = "") -> None:
    """Print the address, open it if there is a browser, and serve the page until Ctrl-C."""
    guard = Guard(host)
    listening = listen(host, port)
    number = listening.getsockname()[1]
    url_host = "127.0.0.1" if host in (*_LOCAL, "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{url_host}:{number}/?token={guard.token}{fragment}"

    def announce() -> None:
        print(address, flush=True)
        if host not in _LOCAL:
            warning = "others of the network who have the address can see these images, unencrypted, and answer; ssh -L is safer"
            print(f"nst: --host {host}: {warning}", file=sys.stderr, flush=True)
        if opens_browser and _has_browser():
            Thread(target=_open_browser, args=(address, folder), daemon=True).start()  # some browsers return only when they are closed

    with tempfile.TemporaryDirectory(prefix="nst-look-") as folder:
        serve(create_app(contents, guard), listening, announce)


def _has_browser() -> bool:
    """Whether a browser can open a window; one in this terminal would take it over."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _open_browser(address: str, folder: str) -> None:
    """Open the address through a file in a private folder: as an argument of a command, the token would be visible to all local users."""
    page = Path(folder) / "nst-look.html"
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}"><title>nst look</title>', "utf-8")
    with suppress(webbrowser.Error):
        webbrowser.open(page.as_uri())
