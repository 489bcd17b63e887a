import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest
from conftest import png
from nst_cli.looking import show_page
from sealed_labels import label_row, seal_generation

from nst_data.errors import UsageError
from nst_data.sources import open_source
from nst_data.store.inputs import Input
from nst_data.store.store import Store

NST = Path(sys.executable).with_name("nst")


@pytest.fixture
def store(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "0.png").write_bytes(png(0, 0))
    entry = Input(ref=str(pool), digest=open_source(str(pool)).fingerprint)
    store = Store(tmp_path / "store")
    seal_generation(store, [label_row(0, png(0, 0), 0, 0.5, key="0.png")], pool=entry)
    return store


@pytest.mark.slow
def test_the_first_line_is_the_address_and_ctrl_c_ends_the_server_cleanly(store):
    command = [NST, "look", "bugs", "--store", store.root, "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = server.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    root = address.partition("?")[0]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(root)
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    assert b"nst look" in browser.open(address).read()
    assert json.loads(browser.open(f"{root}api/overview").read())["rows"] == 1
    assert browser.open(f"{root}thumb/0").read(2) == b"\xff\xd8"
    taken = [NST, "look", "bugs", "--store", store.root, "--port", root.rstrip("/").rpartition(":")[2]]
    second = subprocess.run(taken, capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr.startswith("nst: --port ")
    assert "is in use" in second.stderr
    server.send_signal(signal.SIGINT)
    rest, errors = server.communicate(timeout=20)
    assert (server.returncode, rest, errors) == (0, "", "")


@pytest.mark.slow
def test_with_another_host_others_are_warned_of(store):
    command = [NST, "look", "bugs", "--store", store.root, "--port", "0", "--no-browser", "--host", "0.0.0.0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert server.stdout.readline().startswith("http://127.0.0.1:")
    assert "others of the network" in server.stderr.readline()
    server.terminate()
    server.communicate(timeout=20)
    assert server.returncode == 0


def test_without_the_extra_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "nst_cli.look.server", raising=False)
    monkeypatch.delitem(sys.modules, "nst_cli.look.running", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'nst\[look\]'"):
        show_page(None, "127.0.0.1", None, opens_browser=False)
