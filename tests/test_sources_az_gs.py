"""Sources on emulators of Azure and Google Cloud: what the same files in a folder give, and what faults between the two do."""

import contextlib
import os
import re
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import azurite
import google_storage
import pytest
from addressed import (
    ODD,
    SOURCES,
    assert_is_as_on_disk,
    assert_requests_are_few,
    assert_threads_and_a_fork_read,
    bmp,
    read_all,
    write_files,
)
from faulty_proxy import proxy_to
from nst_cli.main import app
from pictures import write_tar
from typer.testing import CliRunner
from wording import pattern

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_data.store import file_tree
from nst_data.store.store import Store
from nst_train.labeling.label import label
from nst_train.settings import LabelSettings

pytestmark = pytest.mark.slow
MISSING = {"az": "no such container", "gs": "no such bucket"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module", params=["az", "gs"])
def server(request, files, tmp_path_factory):
    """`scheme`, `top` (the address of the files), `put(name, content)`, and the `faults` that can be put before the server.

    The files are there as other programs than ours write them. The environment of this process leads there.
    """
    serve = {"az": _azure, "gs": _google}[request.param]
    with serve(tmp_path_factory.mktemp(request.param)) as (faults, settings, put), pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(file_tree._ENVIRONMENT_PREFIXES)]:
            patch.delenv(name)
        for name, value in (settings | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "NO_GCE_CHECK": "true"}).items():
            patch.setenv(name, value)
        patch.setattr(file_tree, "_TIMEOUT_SECONDS", 1)
        patch.setattr(file_tree, "WAITS_SECONDS", (0.1, 0.1))
        file_tree._file_system.cache_clear()
        for path in files.rglob("*"):
            if path.is_file():
                put(f"files/{path.relative_to(files).as_posix()}", path.read_bytes())
        yield SimpleNamespace(scheme=request.param, top=f"{request.param}://photos/files", put=put, faults=faults)
    file_tree._file_system.cache_clear()


@contextlib.contextmanager
def _azure(top):
    pytest.importorskip("adlfs")
    from azure.storage.blob import BlobServiceClient

    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(azurite.serving(top))
        except subprocess.CalledProcessError:
            pytest.skip("Azurite cannot be installed")
        address, faults = stack.enter_context(proxy_to(url))
        client = stack.enter_context(BlobServiceClient.from_connection_string(azurite.connection_string(url)))
        container = client.create_container("photos")
        settings = {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string(address)}
        yield faults, settings, partial(container.upload_blob, overwrite=True)


@contextlib.contextmanager
def _google(top):
    pytest.importorskip("gcsfs")
    pytest.importorskip(google_storage.PACKAGE)
    with google_storage.serving(top) as url, proxy_to(url) as (address, faults):
        google_storage.make_bucket(url, "photos")
        yield faults, {"STORAGE_EMULATOR_HOST": address}, partial(google_storage.put, url, "photos")


@pytest.fixture
def faults(server):
    server.faults.clear()
    file_tree._silent_until.clear()
    yield server.faults
    server.faults.clear()


@pytest.mark.parametrize(("name", "options"), SOURCES)
def test_an_address_gives_the_rows_of_the_same_files_in_a_folder(server, files, tmp_path, name, options):
    here = open_source(str(files / name), **options)
    there = open_source(f"{server.top}/{name}", indexes=tmp_path, **options)
    assert there.location == f"{server.top}/{Path(here.location).relative_to(files).as_posix()}"
    assert_is_as_on_disk(there, here)


def test_threads_and_a_forked_process_read_single_rows(server, files):
    sources = [(open_source(str(files / name)), open_source(f"{server.top}/{name}")) for name in ("classes", "tars", "parquet")]
    assert_threads_and_a_fork_read(sources)


def test_each_image_is_one_request_and_neighbors_in_a_tar_file_share_one(server, faults):
    images, tars = open_source(f"{server.top}/images"), open_source(f"{server.top}/tars")
    assert_requests_are_few(images, tars, faults)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("images", ("status", 503, "SlowDown")),
        ("images", ("cut", 100)),
        ("images", ("slow", 3)),
        ("tars", ("status", 500, "InternalError")),
        ("tars", ("status", 502, "BadGateway")),
        ("parquet", ("status", 429, "SlowDown")),
        ("parquet", ("cut", 100)),
    ],
)
def test_what_passes_is_waited_for_with_a_warning_and_nothing_is_lost(server, faults, files, caplog, name, fault):
    source = open_source(f"{server.top}/{name}")
    faults.inject(ODD[name], 4 if server.scheme == "az" and fault[0] == "cut" else 2, fault)  # Azure's client tries each cut answer 3 times
    assert read_all(source) == read_all(open_source(str(files / name)))
    assert any("retrying in 0.1 s" in line for line in caplog.messages)
    assert not [line for line in caplog.messages if azurite.KEY in line or "with a secret" in line]


@pytest.mark.parametrize(
    ("fault", "says"),
    [(("status", 403, "Denied"), r"access denied \(403\)"), (("status", 503, "SlowDown"), r"the server is busy \(503\)")],
)
@pytest.mark.parametrize("name", ODD)
def test_what_does_not_pass_stops_and_blames_no_image(server, faults, name, fault, says):
    source = open_source(f"{server.top}/{name}")
    faults.inject(ODD[name], 99, fault)
    with pytest.raises(NstError, match=f"{server.top}/{name}/[^:]*: {says}") as caught:
        read_all(source)
    assert "\n" not in str(caught.value)
    assert "with a secret" not in str(caught.value)
    with pytest.raises(NstError, match=says):
        source.read(next(row for row in range(len(source)) if ODD[name] in source.key(row)))


def test_a_listing_that_is_denied_or_fails_says_so(server, faults):
    for status, says in ((403, r"access denied \(403\)"), (401, r"access denied \(403\)"), (500, r"the server failed \(500\)")):
        faults.clear()
        faults.inject("photos", 99, ("status", status, "Secret"))
        with pytest.raises(NstError, match=f"^{server.top}/images: {says}[^\n]*$"):
            open_source(f"{server.top}/images")


def test_a_listing_that_fails_for_a_while_is_waited_for(server, faults, files, caplog):
    for fault in (("status", 503, "SlowDown"), ("slow", 3)):
        faults.inject("photos", 2, fault)  # what Azure's client asks first may fail without notice
        assert open_source(f"{server.top}/classes").fingerprint == open_source(str(files / "classes")).fingerprint
        assert any("retrying in 0.1 s" in line for line in caplog.messages)
        caplog.clear()


@pytest.mark.parametrize("name", ODD)
def test_files_that_have_gone_meanwhile_are_rows_that_say_so(server, faults, files, name):
    source = open_source(f"{server.top}/{name}")
    faults.inject(ODD[name], 99, ("status", 404, "BlobNotFound"))
    for (_, key, found), (_, _, expected) in zip(read_all(source), read_all(open_source(str(files / name))), strict=True):
        if ODD[name] in key:
            assert "no such file" in found
        else:
            assert found == expected


def test_an_image_of_another_size_than_was_listed_says_so(server):
    server.put("grown/a.png", b"12345")
    server.put("grown/b.png", b"12345")
    source = open_source(f"{server.scheme}://photos/grown")
    server.put("grown/a.png", b"123456")
    server.put("grown/b.png", b"")
    assert [content for _, _, content in read_all(source)] == [f"has {size} bytes, 5 when the pool was listed" for size in (6, 0)]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("photos/nothing", "no such file …; expected at an address"),
        ("photos/nothing.tar", "no such file …; expected at an address"),
        ("nowhere/at/all", "{missing}"),
        ("nowhere/x.tar", "{missing}"),
        ("nowhere", "{missing}"),
        ("photos/files/images/nothing.csv", "no such file …; expected at an address"),
        ("photos/files/images/b.png", "these are images; give their folder"),
        ("photos/files/nothing-*.tar", "parquet or tar files, no file matches"),
        ("photos/files/{tars/1.tar,parquet/0.parquet}", "expected files of one kind"),
    ],
)
def test_what_is_not_there_or_not_read_is_one_line(server, address, says):
    with pytest.raises(NstError, match=pattern(says.replace("{missing}", MISSING[server.scheme]))) as caught:
        open_source(f"{server.scheme}://{address}")
    assert str(caught.value).startswith(f"{server.scheme}://{address}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_was_written_again_at_its_size_is_noticed(server, faults, tiny_store, tmp_path):
    store, *_ = tiny_store
    for index in range(4):
        server.put(f"changing/{index}.png", bmp(index))
    pool = f"{server.scheme}://photos/changing"
    corpus = f"changing-{server.scheme}"
    first = label(store, corpus, "tiny-teacher", open_source(pool), LabelSettings(batch_size=4))
    everything = b"".join(path.read_bytes() for path in first.folder.rglob("*") if path.is_file())
    assert azurite.KEY.encode() not in everything
    server.put("changing/2.png", bmp(9))
    says = f"1 image has different content than when {corpus}@gen-1 was made .'2.png'."
    with pytest.raises(NstError, match=says):
        label(store, corpus, "tiny-teacher", open_source(pool), LabelSettings(batch_size=4))


def test_an_index_of_tar_files_is_kept_and_made_anew_for_other_bytes_of_the_same_size(server, faults, tmp_path):
    def put(*members):
        write_tar(tmp_path / "x.tar", members)
        server.put("kept/x.tar", (tmp_path / "x.tar").read_bytes())

    address = f"{server.scheme}://photos/kept"
    put(("a.png", b"first"), ("b.png", b"x"))
    first = open_source(address, indexes=tmp_path)
    faults.requests.clear()
    again = open_source(address, indexes=tmp_path)
    assert len(faults.requests) <= 3  # to list it
    put(("c.png", b"x"), ("a.png", b"other"))
    other = open_source(address, indexes=tmp_path)
    assert (read_all(first)[0][1], read_all(other)[1]) == ("x.tar:a.png", (1, "x.tar:a.png", b"other"))
    assert first.fingerprint == again.fingerprint == other.fingerprint  # names and sizes
    assert first.stamps().tolist() == again.stamps().tolist() != other.stamps().tolist()


def test_a_store_there_is_refused(server, monkeypatch, tmp_path):
    monkeypatch.setenv("NST_MIRRORS", str(tmp_path))
    with pytest.raises(UsageError, match=f"{server.scheme}://photos/store: expected a store in a folder or on s3://"):
        Store(f"{server.scheme}://photos/store")
    done = CliRunner().invoke(app, ["list", "--store", f"{server.scheme}://photos/store"])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("server", ["az"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"AZURE_STORAGE_CONNECTION_STRING": "{wrong}"}, r"access denied \(403\)"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountName=x;AccountKey=hunter2"}, "no usable credentials"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "hunter2"}, "no usable credentials found; set AZURE_STORAGE_CONNECTION_STRING"),
        ({}, "no usable credentials found; set AZURE_STORAGE_CONNECTION_STRING"),
    ],
)
def test_wrong_and_missing_credentials_are_one_line_that_does_not_repeat_them(server, tiny_store, monkeypatch, capfd, settings, says):
    wrong = os.environ["AZURE_STORAGE_CONNECTION_STRING"].replace(azurite.KEY, "aHVudGVyMg==")
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    for name, value in settings.items():
        monkeypatch.setenv(name, value.replace("{wrong}", wrong))
    with pytest.raises(NstError, match=f"{server.top}/images: {says}") as caught:
        open_source(f"{server.top}/images")
    words = ["label", f"{server.top}/images", "--teacher", "tiny-teacher", "--corpus", "x", "--store", str(tiny_store[0].root)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert re.search(says, done.stderr)
    shown = str(caught.value) + done.stderr + "".join(capfd.readouterr())
    assert shown.count("\n") == 1
    assert "hunter2" not in shown
    assert "aHVudGVyMg" not in shown


@pytest.mark.parametrize("server", ["az"], indirect=True)
def test_a_folder_is_also_found_by_an_address_with_its_account(server, files):
    there = open_source(f"abfss://photos@{azurite.ACCOUNT}.dfs.core.windows.net/files/images")
    assert read_all(there) == read_all(open_source(str(files / "images")))
