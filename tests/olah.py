"""olah, a mirror of the Hub by other people that serves git repositories: an independent reader of what the test Hub stored.

It comes from PyPI by pip, into an environment of its own below .cache/, which later runs use again. It needs git. Known limits,
which are its own: no answer to `GET /api/{models,datasets}/<repo>` without a revision, no authors in the list of commits.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

OLAH = "olah==0.5.4"
PLACE = Path(__file__).parent.parent / ".cache" / OLAH


def install():
    """olah's own Python."""
    python = PLACE / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (PLACE / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", PLACE], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", OLAH], check=True)
        (PLACE / "complete").touch()
    return python


@contextmanager
def serve_mirror(top, place):
    """The address of an olah that serves the repositories below the folder `top`; `place` is a new folder for its own files."""
    python = install()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.mkdir()
    settings = f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{place}/cache"\nmirrors-path = ["{top}"]\n'
    (place / "olah.toml").write_text(settings + "[accessibility]\noffline = true\n")
    url = f"http://127.0.0.1:{port}"
    with open(place / "output", "w") as output:
        command = [python, "-m", "olah.server", "--config", "olah.toml", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, cwd=place, stdout=output, stderr=output)
    try:
        until = time.monotonic() + 60
        while not _answers(url):
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError(f"olah does not answer:\n{(place / 'output').read_text()}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url):
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/nothing").close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer, though it has no such page
    except OSError:
        return False
    return True
