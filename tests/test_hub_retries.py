"""What is tried again of the Hub's calls, and what is not; pools and teachers read through a Hub that fails at first."""

import errno
import json
import subprocess
import sys

import pytest
from conftest import png
from hub import commit, environment, serving
from hub_faults import ALWAYS, Fault
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx
from wording import mentions

from nst_data.errors import NstError
from nst_data.hub.errors import translate_hub_errors
from nst_data.hub.retries import call_with_retries
from nst_train.networks.weights import download_snapshot

NOWHERE = "http://hub.invalid"  # a name that no machine knows

READ = """
import json
from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_train.networks.weights import WEIGHTS, download

def images(name):
    return len(open_source(name))

def weights(name):
    return (download(name)[0] / WEIGHTS).read_text()

for read, name in ((images, "me/pool"), (weights, "me/net"), (images, "me/gone"), (weights, "me/secret")):
    try:
        print(json.dumps(read(name)))
    except NstError as error:
        print(json.dumps(str(error)))
"""


def answered(status, **headers):
    return HfHubHTTPError(str(status), response=httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://hub")))


def because(error, cause):
    error.__cause__ = cause
    return error


def calls_until(error, works_after=2, **options):
    """How often a call was made that fails so often with an error and works then; the error's name where it is not made again."""
    calls = []

    def call():
        calls.append(1)
        if len(calls) <= works_after:
            raise error
        return len(calls)

    try:
        return call_with_retries(call, waits=(0, 0, 0), **options)
    except type(error):
        return f"{len(calls)} failed"


@pytest.mark.parametrize(
    "error",
    [
        answered(503),
        answered(429, **{"Retry-After": "0"}),
        httpx.ReadError("reset"),
        httpx.ConnectError("refused"),
        ConnectionError("Couldn't reach it"),
        because(LocalEntryNotFoundError("not cached"), answered(500)),  # as hf_hub_download says it
        because(LocalEntryNotFoundError("not cached"), httpx.ConnectTimeout("slow")),
    ],
    ids=str,
)
def test_a_call_that_may_pass_is_made_again(error):
    assert calls_until(error) == 3
    assert calls_until(error, works_after=9) == "4 failed"


def test_what_is_asked_again_is_noted_without_the_signature_of_its_address(caplog):
    caplog.set_level("INFO", "nst_data.hub.retries")
    assert calls_until(ConnectionError("reset by https://cdn.example/a?X-Amz-Signature=5ec3e7 while reading")) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"the Hub: reset by https://cdn.example/a while reading; retrying in {wait} s" for wait in (0, 0)
    ]


@pytest.mark.parametrize(
    "error",
    [answered(401), answered(404), because(ValueError("no data"), answered(404)), OfflineModeIsEnabled("off"), KeyError("bug")],
    ids=str,
)
def test_a_refusal_is_told_at_once(error):
    assert calls_until(error) == "1 failed"


def test_where_there_is_no_network_a_mistyped_path_is_told_at_once():
    assert calls_until(httpx.ConnectError("refused"), may_be_path=True) == "1 failed"
    assert calls_until(answered(503), may_be_path=True) == 3


def test_a_client_that_has_tried_long_to_connect_is_not_asked_again(monkeypatch):
    monkeypatch.setattr("nst_data.hub.retries._OWN_RETRY_SECONDS", -1)
    assert calls_until(httpx.ConnectError("no network")) == "1 failed"
    assert calls_until(httpx.ReadTimeout("busy")) == 3


@pytest.mark.slow
def test_pools_and_teachers_survive_a_hub_that_fails_at_first_and_ask_once_where_it_refuses(tmp_path):
    commit(tmp_path / "top", "me/pool", {f"{index}.png": png(0, index) for index in range(3)})
    commit(tmp_path / "top", "me/net", {"config.json": b"{}", "model.safetensors": b"weights"}, "models")

    passing = [Fault("info", 503, path="me/pool"), Fault("revision", "cut", path="me/net")]
    passing += [Fault("lfs get", kind, path=repo) for kind, repo in ((500, "me/pool"), ("cut", "me/net"))]
    lasting = [Fault("info", 404, times=ALWAYS, path="me/gone"), Fault("revision", 401, times=ALWAYS, path="me/secret")]
    with serving(tmp_path / "top", [*passing, *lasting]) as (url, _):
        words, variables = [sys.executable, "-c", READ], environment(url, tmp_path)
        done = subprocess.run(words, env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pool, net, gone, secret = map(json.loads, done.stdout.splitlines())
    assert (pool, net) == (3, "weights")
    assert all(fault.seen > 1 for fault in passing)
    assert "no such dataset on the Hub" in gone
    assert mentions(secret, "not logged in to the Hub")
    assert [fault.seen for fault in lasting] == [1, 1]


def test_a_hub_whose_name_is_not_known_is_told_at_once_and_the_cache_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("http", "https", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)
    asked = []
    with pytest.raises(httpx.ConnectError):
        call_with_retries(lambda: asked.append(1), may_be_path=True)
    monkeypatch.setattr("nst_train.networks.weights.snapshot_download", lambda repo, local_files_only, **_: str(tmp_path / repo))
    assert download_snapshot("me/net") == tmp_path / "me" / "net"

    def lacking(repo, local_files_only, **_):
        raise LocalEntryNotFoundError(repo)

    monkeypatch.setattr("nst_train.networks.weights.snapshot_download", lacking)
    with pytest.raises(
        NstError, match=r"^hf-hub:me/net: .*cannot be reached \(its name could not be resolved\); check the network and HF_ENDPOINT$"
    ):
        download_snapshot("hf-hub:me/net")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://localhost")
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: [] if port is None else pytest.fail("asks for a service"))
    assert call_with_retries(lambda: 1, may_be_path=True) == 1
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")
    assert call_with_retries(lambda: 1, may_be_path=True) == 1
    assert not asked


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (because(httpx.ConnectError("x"), ConnectionRefusedError(errno.ECONNREFUSED, "https://secret")), "connection refused"),
        (because(httpx.ConnectError("https://secret"), OSError("All connection attempts failed")), "no connection"),
        (httpx.ReadTimeout("https://secret"), "no answer in time"),
        (httpx.RemoteProtocolError("https://secret"), "the connection broke"),
    ],
)
def test_why_the_hub_cannot_be_reached_is_said_in_words(error, says):
    with (
        pytest.raises(NstError, match=rf"^me/net: the Hub cannot be reached \({says}\); check the network"),
        translate_hub_errors("me/net"),
    ):
        raise error
