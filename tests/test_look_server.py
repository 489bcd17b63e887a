import base64
import errno
import hashlib
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import picture, png, write_class_folders
from nst_cli.look.contents import Contents
from nst_cli.look.export import build_page, export
from nst_cli.look.opening import open_contents
from nst_cli.look.security import Guard
from nst_cli.look.server import create_app, listen
from nst_cli.look.thumbnails import Thumbnails, as_jpeg
from PIL import Image
from sealed_labels import NAMES, label_row, seal_generation
from starlette.testclient import TestClient

from nst_data.errors import NstError, UsageError
from nst_data.images import image_hash
from nst_data.inspection.label_rows import LabelRows
from nst_data.inspection.quality import quality
from nst_data.inspection.row_columns import RowColumns, margin_and_entropy
from nst_data.progress import Progress
from nst_data.review.answers import Answer, AnswerLog, Answers
from nst_data.review.freeze import freeze
from nst_data.review.queues import save_queue, save_suspicion
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings, PickSettings
from nst_data.sources import open_source
from nst_data.store.inputs import Input
from nst_data.store.store import Store
from nst_data.tables.schema import errors_schema
from nst_data.tables.shards import write_parquet
from nst_train.features.picking import pick

HERE = "http://127.0.0.1:8000"
HOSTILE = "<img src=x onerror=alert(1)>\"'{{7*7}}.png"


def fill(folder):
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(number % 3, number))
    return folder


@pytest.fixture
def pool(tmp_path):
    return fill(tmp_path / "pool")


def rows_of(folder, labels, confidences):
    files = sorted(folder.iterdir())
    return [
        label_row(number, file.read_bytes(), label, confidence, key=file.name)
        for number, (file, label, confidence) in enumerate(zip(files, labels, confidences, strict=True))
    ]


def sealed(store, folder, labels=(0, 1, 2, 0, 1, 2), confidences=(0.97, 0.87, 0.77, 0.67, 0.57, 0.47)):
    entry = Input(ref=str(folder), digest=open_source(str(folder)).fingerprint)
    return seal_generation(store, rows_of(folder, labels, confidences), pool=entry)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with one generation, which no test changes, and a browser that looks at it."""
    folder = tmp_path_factory.mktemp("look")
    store = Store(folder / "store")
    sealed(store, fill(folder / "pool"))
    return store, visit(open_contents(store, "bugs@gen-1"))


@pytest.fixture(scope="module")
def quiet(made):
    return made[1]


@pytest.fixture
def store(tmp_path, pool):
    store = Store(tmp_path / "store")
    sealed(store, pool)
    return store


def visit(contents, host="127.0.0.1"):
    """A browser that has the cookie."""
    guard = Guard(host)
    browser = TestClient(create_app(contents, guard), base_url=HERE)
    assert browser.get(f"/?token={guard.token}", follow_redirects=False).status_code == 303
    return browser


@pytest.fixture
def browser(store):
    return visit(open_contents(store, "bugs@gen-1"))


def answered(browser, **answer):
    return browser.post("/api/answers", json=answer, headers={"Origin": HERE})


def keys_of(browser, **query):
    return [item["key"] for item in browser.get("/api/grid", params=query).json()["items"]]


def test_the_first_request_with_the_token_gets_a_cookie_and_an_address_without_it(made):
    guard = Guard()
    stranger = TestClient(create_app(open_contents(made[0], "bugs@gen-1"), guard), base_url=HERE)
    for path in ("/", "/api/overview", "/static/app.js", "/thumb/0", "/api/nothing"):
        assert stranger.get(path).status_code == 401, path
    assert stranger.get("/?token=wrong").status_code == 403
    answer = stranger.get(f"/?token={guard.token}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert re.fullmatch(r"nst_look_\w{12}=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", answer.headers["set-cookie"])
    assert guard.token not in answer.headers["set-cookie"]
    page = stranger.get("/")
    assert page.status_code == 200
    assert guard.token not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';")
    assert "unsafe" not in page.headers["content-security-policy"]


def test_a_link_elsewhere_leads_in_although_browsers_send_no_strict_cookie_after_it(made):
    stranger = TestClient(create_app(open_contents(made[0], "bugs@gen-1"), Guard()), base_url=HERE)
    after_link = stranger.get("/", headers={"Sec-Fetch-Site": "cross-site"})
    assert (after_link.status_code, "location.replace" in after_link.text) == (401, True)
    script = re.search("<script>(.*)</script>", after_link.text)[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert after_link.headers["content-security-policy"] == f"default-src 'none'; script-src 'sha256-{allowed}'"
    for site in ("same-origin", "none"):
        again = stranger.get("/", headers={"Sec-Fetch-Site": site})
        assert (again.status_code, again.headers["content-type"]) == (401, "application/json")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "[::1]", "127.0.0.1:x", ""])
def test_another_host_is_refused_whatever_cookie_it_has(quiet, host):
    assert quiet.get("/api/overview", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:22", "LOCALHOST"])
def test_a_port_that_is_forwarded_is_this_machine(quiet, host):
    assert quiet.get("/api/overview", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://127.0.0.1:8000", "http://evil.example", "http://127.0.0.1:8001", "null"])
def test_a_page_of_another_origin_can_neither_read_nor_answer(quiet, origin):
    assert quiet.get("/api/grid", headers={"Origin": origin}).status_code == 403
    assert quiet.post("/api/answers", json={"id": 0, "class": "ant"}, headers={"Origin": origin}).status_code == 403
    assert quiet.get("/thumb/0", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert quiet.post("/api/answers", json={"id": 0, "class": "ant"}).status_code == 403, "a form names no origin"
    assert quiet.get("/api/overview").json()["review"]["answered"] == 0


def test_with_another_address_numbers_are_hosts_and_names_are_not(made):
    browser = visit(open_contents(made[0], "bugs@gen-1"), host="0.0.0.0")
    assert browser.get("/api/overview", headers={"Host": "192.168.1.5:8000"}).status_code == 200
    assert browser.get("/api/overview", headers={"Host": "evil.example"}).status_code == 403


def test_the_overview_counts_and_the_grid_filters_and_sorts(quiet):
    browser = quiet
    told = browser.get("/api/overview").json()
    assert (told["ref"], told["kind"], told["rows"], told["errors"]) == ("bugs@gen-1", "generation", 6, 0)
    assert told["per_class"] == [{"name": name, "before": 2, "after": None} for name in NAMES]
    assert [told["histogram"]["counts"][place] for place in (9, 11, 13, 15, 17, 19)] == [1] * 6
    assert keys_of(browser) == [f"{number}.png" for number in range(6)]
    assert keys_of(browser, sort="confidence", limit=2) == ["5.png", "4.png"]
    assert keys_of(browser, sort="-confidence", limit=2, offset=1) == ["1.png", "2.png"]
    assert keys_of(browser, **{"class": "ant"}) == ["0.png", "3.png"]
    assert keys_of(browser, min=0.6, max=0.9) == ["1.png", "2.png", "3.png"]


def test_margin_and_entropy_are_those_of_the_soft_labels(tmp_path, pool):
    store = Store(tmp_path / "soft")
    rows = rows_of(pool, [0] * 6, [0.5, 0.9, 0.4, 0.6, 0.7, 0.8])
    soft = [[0.5, 0.5, 0], [0.9, 0.05, 0.05], [0.4, 0.3, 0.3], [0.6, 0.4, 0], [0.7, 0.2, 0.1], [0.8, 0.2, 0]]
    seal_generation(store, [row | {"probs": probs} for row, probs in zip(rows, soft, strict=True)])
    contents = open_contents(store, "bugs@gen-1", pool=str(pool))
    margins = [abs(sorted(probs)[-1] - sorted(probs)[-2]) for probs in soft]
    entropies = [-sum(p * np.log(p) for p in probs if p) for probs in soft]
    by_margin, by_entropy = ([item["id"] for item in contents.grid({"sort": sort})["items"]] for sort in ("margin", "entropy"))
    assert by_margin == np.argsort(margins).tolist()
    assert by_entropy == np.argsort(np.negative(entropies)).tolist()
    (margin,), (entropy,) = margin_and_entropy(np.float32([[0.6]]), 3)  # of the first class alone: 0.2 are left to each of the others
    assert (margin, entropy) == pytest.approx((0.4, -0.6 * np.log(0.6) - 0.4 * np.log(0.2)))


def test_columns_of_many_rows_are_kept_whole_or_not_at_all(store, monkeypatch):
    monkeypatch.setattr("nst_data.inspection.row_columns._MIN_CACHED_ROWS", 1)
    rows = LabelRows(store.open("bugs@gen-1"))
    made = RowColumns(store, rows).margins_and_entropies()
    (kept,) = (store.root / "runs/look").iterdir()
    assert kept.suffix == ".arrow"
    monkeypatch.setattr(RowColumns, "_compute_margins_and_entropies", lambda self: pytest.fail("it is kept"))
    assert RowColumns(store, rows).margins_and_entropies().equals(made)
    monkeypatch.setattr("nst_data.store.files.fsync", full_disk)
    assert len(RowColumns(store, rows).hashes()) == 6
    assert list((store.root / "runs/look").iterdir()) == [kept]


def full_disk(_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_labels_of_the_generation_before_stand_beside_and_what_moved_is_counted(store, pool):
    sealed(store, pool, labels=(0, 1, 2, 1, 1, 0))
    contents = open_contents(store, "bugs")
    contents.view.compared.result()
    assert contents.overview()["flow"] == {
        "from": "bugs@gen-1",
        "changed": 2,
        "moves": [{"from": "ant", "to": "bee", "images": 1}, {"from": "cat", "to": "ant", "images": 1}],
    }
    (moved,) = contents.grid({"from": "cat", "to": "ant"})["items"]
    assert (moved["key"], moved["label"], moved["label2"]) == ("5.png", "ant", "cat")
    assert contents.grid({"disagree": "1"})["total"] == 2
    assert [one["version"] for one in contents.detail(5)["history"]] == ["bugs@gen-1", "bugs@gen-2"]


def test_a_damaged_generation_before_leaves_all_else_of_a_version_usable(tmp_path, store, pool):
    (table,) = (store.open("bugs@gen-1").folder / "pseudo_labels").glob("*.parquet")
    sealed(store, pool)
    content = table.read_bytes()
    pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    table.write_bytes(b"\xff" * pages + content[pages:])  # the footer is whole
    contents = open_contents(store, "bugs")
    wait([contents.view.compared])
    told = contents.overview()
    assert (told["compared"], told["flow"], told["can"]["compare"], told["pending"]) == (None, None, False, False)
    assert [item["label2"] for item in contents.grid({})["items"]] == [None] * 6
    assert [one["version"] for one in contents.detail(0)["history"]] == ["bugs@gen-2"]
    assert export(contents, tmp_path / "page", False, Progress())["images"] == 6
    asked = open_contents(store, "bugs", "bugs@gen-1")
    wait([asked.view.compared])
    with pytest.raises(NstError, match=r"^bugs@gen-1: the labels cannot be read"):
        asked.grid({})


def test_another_copy_of_the_pool_is_joined_by_its_bytes(tmp_path, store, pool):
    other = tmp_path / "copy"
    other.mkdir()
    for number, file in enumerate(sorted(pool.iterdir(), reverse=True)):
        (other / f"renamed-{number}.png").write_bytes(file.read_bytes())
    sealed(store, other, labels=(0,) * 6)
    contents = open_contents(store, "bugs@gen-2", "bugs@gen-1")
    assert contents.view.compared.result()["label2"].to_list() == [2, 1, 0, 2, 1, 0]


def test_labeled_images_beside_labels_calibrate_them(tmp_path, store):
    truth = tmp_path / "truth"
    for number, name in enumerate(["ant", "bee", "cat", "ant", "bee", "ant"]):
        (truth / name).mkdir(parents=True, exist_ok=True)
        (truth / name / f"{number}.png").write_bytes(png(number % 3, number))
    contents = open_contents(store, "bugs@gen-1", str(truth))
    contents.view.compared.result()
    calibration = contents.overview()["calibration"]
    assert (calibration["accuracy"], calibration["images"]) == (pytest.approx(5 / 6), 6)
    assert calibration["bins"][0] == {"confidence": 0.47, "accuracy": 0.0, "images": 1}


def test_answers_are_on_disk_known_by_hash_and_can_be_taken_back(browser, store):
    assert answered(browser, id=2, **{"class": "bee"}).json()["answer"] == {"class": "bee"}
    assert answered(browser, id=3, excluded="unusable").json()["review"] == {
        **{"corpus": "bugs", "reviewer": "reviewer", "answered": 1, "excluded": 1, "disputed": 0, "own": 2, "of_dropped": 0}
    }
    written = [json.loads(line) for line in (store.root / "reviews/bugs/reviewer.jsonl").read_text().splitlines()]
    assert [(one["key"], one["class"]) for one in written] == [("2.png", "bee"), ("3.png", None)]
    assert keys_of(browser, reviewed="yes") == ["2.png", "3.png"]
    assert keys_of(browser, reviewed="no", **{"class": "ant"}) == ["0.png"]
    other = open_contents(store, "bugs@gen-1", reviewer="second")
    other.answer({"id": 2, "class": "cat"})
    assert keys_of(browser, reviewed="disputed") == ["2.png"]
    assert answered(browser, id=2, undo=True).json()["disputed"] is False
    assert browser.get("/api/image/2").json()["answers"][0]["reviewer"] == "second"


def test_answers_of_many_requests_at_once_are_each_read_once(store):
    contents = open_contents(store, "bugs@gen-1")
    with ThreadPoolExecutor(8) as pool:
        for answer in ({"class": "ant"}, {"class": "bee"}, {"undo": True}):
            list(pool.map(lambda row, answer=answer: contents.answer({"id": row, **answer}), range(6)))
            list(pool.map(lambda _: contents.grid({}), range(8)))
    assert [item["answer"] for item in contents.grid({})["items"]] == [{"class": "ant"}] * 6


@pytest.mark.parametrize(
    "answer",
    [
        *({"id": 99, "class": "ant"}, {"id": -1, "class": "ant"}, {"id": 0, "class": "dragon"}, {"id": 0}, {"id": 0, "excluded": "ugly"}),
        *({"id": "0", "class": "ant"}, {"id": 0, "class": 3}, {"id": 0, "class": "ant", "reviewer": "x"}, [], {"id": True, "class": "ant"}),
    ],
)
def test_what_is_no_answer_is_a_line_and_nothing_is_written(made, answer):
    store, browser = made
    refused = browser.post("/api/answers", json=answer, headers={"Origin": HERE})
    assert refused.status_code == 400
    assert len(refused.json()["error"].splitlines()) == 1
    assert not (store.root / "reviews/bugs/reviewer.jsonl").exists()


@pytest.mark.parametrize(
    "query", ["class=dragon", "min=x", "min=nan", "max=7", "sort=size", "offset=-1", "limit=1e9", "near=x", "reviewed=maybe", "queue=none"]
)
def test_a_query_that_is_none_is_a_line(quiet, query):
    refused = quiet.get(f"/api/grid?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]


def test_an_image_is_shown_only_if_its_bytes_are_those_that_were_labeled(browser, pool):
    shown = browser.get("/thumb/0")
    assert (shown.status_code, shown.headers["content-type"], Image.open(io.BytesIO(shown.content)).size) == (200, "image/jpeg", (16, 16))
    assert browser.get("/thumb/0", headers={"If-None-Match": shown.headers["etag"]}).status_code == 304
    (pool / "1.png").write_bytes((pool / "1.png").read_bytes()[:-1] + b"?")
    (pool / "2.png").unlink()
    for row, reason in ((1, "'1.png' has different content than the labeled image"), (2, "No such file"), (99, "no row 99")):
        refused = browser.get(f"/image/{row}")
        assert (refused.status_code, refused.headers["content-type"]) == (404, "text/plain; charset=utf-8")
        assert reason in refused.text


def test_nothing_of_a_file_is_passed_on_but_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "<script>alert('secret place')</script>"
    file = io.BytesIO()
    picture(0, 0, 64).save(file, "JPEG", exif=exif, comment=b"secret comment", icc_profile=b"secret profile")
    made = as_jpeg(file.getvalue() + b"<html>secret tail</html>", 32)
    assert b"secret" not in made
    assert Image.open(io.BytesIO(made)).size == (32, 32)
    assert Image.open(io.BytesIO(made)).info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize("content", [b"no picture", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n broken", b"GIF89a"])
def test_what_is_no_image_is_a_line_and_never_passed_on(tmp_path, content):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "a.png").write_bytes(content)
    store = Store(tmp_path / "store")
    seal_generation(store, rows_of(folder, [0], [0.5]), pool=Input(ref=str(folder), digest=open_source(str(folder)).fingerprint))
    refused = visit(open_contents(store, "bugs@gen-1")).get("/image/0")
    assert (refused.status_code, refused.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert content not in refused.content


def test_thumbnails_are_kept_within_a_bound():
    made = []
    thumbnails = Thumbnails(max_bytes=3000)

    def read(number):
        made.append(number)
        return png(0, number)

    for number in (0, 1, 0, 2, 3, 4, 5, 0):
        thumbnails.get(f"hash {number}", 192, lambda number=number: read(number))
    assert made.count(0) == 2
    assert sum(map(len, thumbnails._made.values())) <= 3000


def test_hostile_names_are_text(tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    (folder / HOSTILE.replace("/", "")).write_bytes(png(0, 0))
    store = Store(tmp_path / "store")
    names = ["</script><script>alert(1)</script>", "{{7*7}}", "\u202egnp.exe"]
    entry = Input(ref=str(folder), digest=open_source(str(folder)).fingerprint)
    seal_generation(store, rows_of(folder, [0], [0.5]), names=names, pool=entry)
    browser = visit(open_contents(store, "bugs@gen-1"))
    grid = browser.get("/api/grid")
    assert grid.headers["content-type"] == "application/json"
    assert grid.json()["items"][0]["label"] == names[0]
    labeled = tmp_path / "<b>49{{7*7}}"
    write_class_folders(labeled, ["a", "b"], 1)
    page = visit(open_contents(store, str(labeled))).get("/")
    assert "<b>49" not in page.text
    assert "&lt;b&gt;49{{7*7}}" in page.text


@pytest.mark.parametrize("path", ["/static/..%2fserver.py", "/static/index.html", "/static/%2e%2e/server.py", "/static/x.js", "/server.py"])
def test_only_the_files_of_the_page_are_served(quiet, path):
    assert quiet.get(path).status_code == 404


def test_the_pool_of_a_pulled_version_is_opened_only_when_the_user_names_it(store, pool, monkeypatch):
    (store.root / "corpora/bugs/gen-1/hub.json").write_text("[]")
    place = {"repo": "o/bugs", "tag": "gen-1", "commit": "c", "digest": "d", "pulled": True}
    (store.root / "corpora/bugs/gen-1/hub.json").write_text(json.dumps([place]))
    browser = visit(open_contents(store, "bugs@gen-1"))
    monkeypatch.setattr("nst_cli.messages._current.command", "look")
    assert "--pool" in browser.get("/api/overview").json()["images"]
    assert browser.get("/thumb/0").status_code == 404
    assert "--pool" in browser.get("/thumb/0").text
    named = visit(open_contents(store, "bugs@gen-1", pool=str(pool)))
    assert named.get("/api/overview").json()["images"] is None
    assert named.get("/thumb/0").status_code == 200


def test_a_pool_with_other_names_is_told_by_its_bytes(tmp_path, store, pool):
    other = tmp_path / "copy"
    other.mkdir()
    for number, file in enumerate(sorted(pool.iterdir(), reverse=True)):
        file.rename(other / f"renamed-{number}.png")
    (other / "renamed-0.png").unlink()
    contents = open_contents(store, "bugs@gen-1", pool=str(other))
    assert contents.jpeg(1, 192)[1] == as_jpeg(png(1, 1), 192)
    with pytest.raises(NstError, match=r"copy: lacks '5.png', under any name"):
        contents.jpeg(5, 192)


def test_what_a_user_can_get_wrong_is_a_line(tmp_path, store, pool):
    with pytest.raises(UsageError, match=r"nobody:.*generation or edition.*/store.*bugs@gen-1"):
        open_contents(store, "nobody")
    with pytest.raises(NstError, match=r"photos/none: no such file or folder"):
        open_contents(store, str(tmp_path / "photos/none"))
    with pytest.raises(NstError, match=r"no reviewer|reviewer's name"):
        open_contents(store, "bugs@gen-1", reviewer="../x")
    with pytest.raises(UsageError, match=r"`pool`: .* already contains its images"):
        open_contents(store, str(write_class_folders(tmp_path / "labeled", ["a", "b"], 1)), pool=str(pool))
    pool.rename(tmp_path / "moved")
    with pytest.raises(NstError, match=r"pool:.*bugs@gen-1 was made from it.*`pool`"):
        open_contents(store, "bugs@gen-1")
    assert isinstance(open_contents(store, "bugs@gen-1", pool=str(tmp_path / "moved")), Contents)


def test_a_port_that_is_taken_is_a_line_and_without_one_another_is_free():
    first = listen("127.0.0.1", 0)
    taken = first.getsockname()[1]
    with pytest.raises(UsageError, match=r"`port` \d+ is in use; choose another"):
        listen("127.0.0.1", taken)
    with pytest.raises(UsageError, match=r"`host` 203\.0\.113\.1:.*of this machine.*127\.0\.0\.1"):
        listen("203.0.113.1", 0)
    with pytest.raises(UsageError, match="expected a number from 0 to 65535"):
        listen("127.0.0.1", 70000)
    first.close()


def test_what_an_edition_left_out_is_shown_with_its_reason(tmp_path, store, pool):
    held_out = tmp_path / "test"
    held_out.mkdir()
    (held_out / "copy.png").write_bytes((pool / "0.png").read_bytes())
    (pool / "9.png").write_bytes((pool / "1.png").read_bytes())
    sealed(store, pool, labels=(0, 1, 2, 0, 1, 2, 1), confidences=(0.97, 0.87, 0.77, 0.67, 0.57, 0.12, 0.87))
    settings = BalanceSettings(min_confidence=0.3, per_class=1, exact_overlap_only=True)
    balance(store, "bugs@gen-2", settings, exclude=[open_source(str(held_out))])
    contents = open_contents(store, "bugs@gen-2.1")
    told = contents.overview()
    reasons = {item["key"]: reason for reason in told["dropped"] for item in contents.grid({"reason": reason})["items"]}
    assert reasons == {"0.png": "held_out", "9.png": "duplicate", "4.png": "over_quota", "5.png": "low_confidence"}
    assert told["dropped"] == {"held_out": 1, "duplicate": 1, "low_confidence": 1, "over_quota": 1}
    assert (told["kept"], [item["key"] for item in contents.grid({"reason": "kept"})["items"]]) == (3, ["1.png", "2.png", "3.png"])
    (item,) = contents.grid({"reason": "over_quota", "class": "bee", "sort": "margin"})["items"]
    assert (item["reason"], item["label"], item["confidence"]) == ("over_quota", "bee", pytest.approx(0.57))
    assert contents.detail(item["id"])["key"] == "4.png"
    assert Image.open(io.BytesIO(contents.jpeg(item["id"], 192)[1])).size == (16, 16)
    contents.answer({"id": item["id"], "class": "cat"})
    assert contents.detail(item["id"])["answer"] == {"class": "cat"}
    by_answer = {state: contents.grid({"reason": "over_quota", "reviewed": state})["total"] for state in ("yes", "no", "disputed")}
    assert by_answer == {"yes": 1, "no": 0, "disputed": 0}
    assert contents.grid({"reason": "held_out", "reviewed": "no"})["total"] == 1
    told = contents.answer({"id": 1, "excluded": "unusable"})["review"]
    assert (told["answered"], told["excluded"], told["own"], told["of_dropped"]) == (0, 1, 1, 1)
    balance(store, "bugs@gen-2", BalanceSettings(min_confidence=0, per_class="none"), reviews=freeze(store, "bugs"))
    contents = open_contents(store, "bugs@gen-2.2")
    told = contents.overview()["dropped"]
    assert told == {"answered": 1, "unusable": 1, "duplicate": 1}
    reasons = {item["key"]: reason for reason in told for item in contents.grid({"reason": reason})["items"]}
    assert reasons == {"4.png": "answered", "2.png": "unusable", "9.png": "duplicate"}
    assert contents.overview()["review"]["of_dropped"] == 2
    again = open_contents(store, "bugs@gen-2.2")  # a link to it opens where nobody has asked yet what was dropped
    assert again.grid({"reason": "answered", "reviewed": "no"})["total"] == 0


def test_images_that_could_not_be_labeled_are_listed_with_their_reason(store, pool):
    (pool / "z.png").write_bytes(b"no image")
    table = pa.Table.from_pylist([{"id": 6, "key": "z.png", "reason": "not an image in a known format"}], schema=errors_schema())
    write_parquet(store.open("bugs").folder / "errors/train-00000-of-00001.parquet", [table], table.schema)
    browser = visit(open_contents(store, "bugs"))
    assert browser.get("/api/overview").json()["errors"] == 1
    assert browser.get("/api/grid").json()["total"] == 6
    listed = browser.get("/api/grid?errors=1").json()
    assert (listed["total"], listed["items"][0]["key"], listed["items"][0]["label"]) == (1, "z.png", None)
    assert listed["items"][0]["error"] == "not an image in a known format"
    row = listed["items"][0]["id"]
    assert "could not be read" in browser.get(f"/thumb/{row}").text
    assert browser.get(f"/api/image/{row}").json()["top"] == []
    assert answered(browser, id=row, excluded="unusable").status_code == 400


def test_an_edition_that_holds_its_images_needs_no_pool(tmp_path, store, pool):
    balance(store, "bugs@gen-1", BalanceSettings(min_confidence=0, per_class="none", embed_images=True))
    pool.rename(tmp_path / "gone")
    browser = visit(open_contents(store, "bugs@gen-1.1"))
    items = browser.get("/api/grid").json()["items"]
    assert sorted(item["key"] for item in items) == [f"{number}.png" for number in range(6)]
    shown = {item["key"]: browser.get(f"/thumb/{item['id']}").content for item in items}
    assert shown == {f"{number}.png": as_jpeg(png(number % 3, number), 192) for number in range(6)}


def test_a_queue_is_shown_in_its_order_and_tells_how_its_images_were_picked(browser, store):
    hashes = [item["hash"] for item in (browser.get(f"/api/image/{row}").json() for row in (4, 1, 3))]
    picks = {
        "image_hash": hashes,
        "key": ["x"] * 3,
        "label": ["ant"] * 3,
        "confidence": [0.5] * 3,
        "by": ["random"] * 3,
        "score": [3, 2, 1],
    }
    save_queue(store, "bugs", pl.DataFrame(picks).cast({"score": pl.Float32, "confidence": pl.Float32}))
    assert keys_of(browser, queue="random") == ["4.png", "1.png", "3.png"]
    assert keys_of(browser, queue="random", sort="key") == ["1.png", "3.png", "4.png"]
    assert browser.get("/api/image/1").json()["pick"] == {"by": "random", "score": 2}
    answered(browser, id=1, **{"class": "ant"})
    assert keys_of(browser, queue="random", reviewed="no") == ["4.png", "3.png"]
    assert browser.get("/api/overview").json()["queues"] == [{"name": "random", "images": 2, "of": 3}]
    assert json.loads((store.root / "reviews/bugs/reviewer.jsonl").read_text())["picked_by"] == "random"


def test_a_random_queue_asks_again_about_images_that_were_answered_for_another_reason(browser, store):
    answered(browser, id=0, **{"class": "cat"})
    pick(store, "bugs@gen-1", PickSettings(by="random", number=6))
    (left,) = browser.get("/api/overview").json()["queues"]
    assert left == {"name": "random", "images": 6, "of": 6}
    asked = browser.get("/api/grid", params={"queue": "random", "reviewed": "no"}).json()["items"]
    assert {(item["id"], item["answer"]) for item in asked} == {(row, None) for row in range(6)}
    for row, name in ((0, "cat"), (1, "bee")):
        answered(browser, id=row, **{"class": name})
    assert browser.get("/api/overview").json()["queues"][0]["images"] == 4
    assert sorted(keys_of(browser, queue="random", reviewed="no")) == ["2.png", "3.png", "4.png", "5.png"]
    sample = quality(store, "bugs@gen-1", freeze(store, "bugs").ref).review
    assert (sample.estimate.correct, sample.estimate.images) == (1, 2)
    sealed(store, Path(store.open("bugs@gen-1").manifest.request.inputs.pool.ref), labels=[0] * 6)  # another generation of the same pool
    pick(store, "bugs@gen-2", PickSettings(by="random", number=6))
    assert [(one["name"], one["images"]) for one in browser.get("/api/overview").json()["queues"]] == [("random", 4), ("random-2", 4)]


def test_what_reviewers_disagree_about_is_not_left_and_each_takes_back_their_own(store):
    pick(store, "bugs@gen-1", PickSettings(by="margin", spread="classes", number=2))
    ann, bob = (visit(open_contents(store, "bugs@gen-1", reviewer=name)) for name in ("ann", "bob"))
    (row, *_) = [item["id"] for item in ann.get("/api/grid", params={"queue": "margin"}).json()["items"]]
    answered(ann, id=row, **{"class": "ant"})
    assert answered(bob, id=row, **{"class": "bee"}).json()["disputed"]
    assert ann.get("/api/overview").json()["queues"] == [{"name": "margin", "images": 1, "of": 2}]
    assert len(keys_of(ann, queue="margin", reviewed="no")) == 1
    assert answered(bob, id=row, undo=True).json()["answer"] == {"class": "ant"}


def test_figures_are_counted_while_another_answers(store):
    contents = open_contents(store, "bugs@gen-1")
    with ThreadPoolExecutor(2) as threads:
        counted = threads.submit(lambda: [contents.reviewing.summary()["own"] for _ in range(500)])
        for row in range(6):
            contents.answer({"id": row, "class": "ant"})
    assert counted.result() == sorted(counted.result())
    assert contents.reviewing.summary()["own"] == 6


def test_an_answer_settles_its_own_image_however_many_others_have_one_and_those_of_others_show(store, monkeypatch):
    others = AnswerLog(store, "bugs", "others")
    others.extend([Answer(f"{number:032x}", "elsewhere.png", "ant") for number in range(50)])
    contents = open_contents(store, "bugs@gen-1")
    contents.view.hashed.result()
    assert contents.overview()["review"]["answered"] == 0
    asked, said_of = [], Answers.resolve_image
    monkeypatch.setattr(Answers, "resolve_image", lambda self, hashed: (asked.append(hashed), said_of(self, hashed))[1])
    contents.answer({"id": 0, "class": "ant"})
    hashes = [contents.detail(row)["hash"] for row in range(3)]
    assert asked == hashes[:1]
    others.append(hashes[0], "0.png", class_name="bee")
    others.append(hashes[1], "1.png", class_name="bee")
    others.append(hashes[2], "2.png", excluded="unusable")
    told = {"corpus": "bugs", "reviewer": "reviewer", "answered": 1, "excluded": 1, "disputed": 1, "own": 1, "of_dropped": 0}
    assert contents.overview()["review"] == told
    assert contents.grid({"reviewed": "disputed"})["total"] == 1
    others.append(hashes[0], "0.png", undo=True)
    assert contents.overview()["review"] == told | {"answered": 2, "disputed": 0}


def test_only_answers_and_queues_about_images_of_the_view_count(tmp_path, store, pool):
    labeled = tmp_path / "labeled"
    for number, name in enumerate(["ant", "bee"]):
        (labeled / name).mkdir(parents=True)
        (labeled / name / "some.png").write_bytes((pool / f"{number}.png").read_bytes())
    contents = open_contents(store, "bugs@gen-1")
    hashes = [contents.detail(row)["hash"] for row in range(6)]
    for name, rows in (("some", [0, 1, 2, 3]), ("others", [4, 5])):
        picks = {"image_hash": [hashes[row] for row in rows], "key": "x", "label": "ant", "confidence": 0.5, "by": name, "score": 1.0}
        save_queue(store, "bugs", pl.DataFrame(picks))
    for row in (1, 2, 4):
        contents.answer({"id": row, "class": "ant"})
    contents = open_contents(store, str(labeled), corpus="bugs", reviewer="bob")
    contents.view.hashed.result()
    told = contents.overview()
    assert told["review"] == {"corpus": "bugs", "reviewer": "bob", "answered": 1, "excluded": 0, "disputed": 0, "own": 0, "of_dropped": 0}
    assert told["queues"] == [{"name": "some", "images": 1, "of": 2}]
    assert contents.grid({"reviewed": "yes"})["total"] == 1
    assert contents.answer({"id": 0, "excluded": "unusable"})["review"]["own"] == 1


def test_suspicion_sorts_where_it_was_computed(store, pool):
    hashes = [image_hash((pool / f"{number}.png").read_bytes()) for number in (3, 5)]
    save_suspicion(
        store, "bugs", "gen-1", pl.DataFrame({"image_hash": hashes, "suspicion": [0.2, 0.9]}, schema_overrides={"suspicion": pl.Float32})
    )
    contents = open_contents(store, "bugs@gen-1")
    contents.view.suspicion.result()
    assert [item["suspicion"] for item in contents.grid({"sort": "-suspicion"})["items"]][:3] == [0.9, 0.2, None]


def test_near_duplicates_are_those_of_the_perceptual_hash(tmp_path, pool):
    store = Store(tmp_path / "alike")
    rows = rows_of(pool, [0] * 6, [0.5] * 6)
    hashes = [0, 0b111, 2**62, -1, 0b1, 2**40 - 1]
    seal_generation(store, [row | {"phash": phash} for row, phash in zip(rows, hashes, strict=True)])
    contents = open_contents(store, "bugs@gen-1", pool=str(pool))
    assert [item["id"] for item in contents.grid({"near": "0"})["items"]] == [2, 4, 1]
    assert [item["id"] for item in contents.grid({"near": "0", "sort": "key"})["items"]] == [1, 2, 4]


def test_an_export_is_one_file_of_a_bounded_size_without_an_address_outside(tmp_path, store, pool):
    (pool / "0.png").rename(pool / "<script>0.png")
    sealed(store, pool)
    contents = open_contents(store, "bugs@gen-2")
    contents.answer({"id": 0, "class": "bee"})
    made = export(contents, tmp_path / "site", False, Progress())
    assert made["images"] == 6
    page = (tmp_path / "site/index.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="nst-data">(.*?)</script>', page, re.DOTALL)[1])
    assert (len(data["items"]), len(data["thumbs"]), data["overview"]["can"]["review"]) == (6, 6, False)
    assert data["overview"]["sampled"] is None
    assert {item["key"] for item in data["items"]} == {"<script>0.png", *(f"{number}.png" for number in range(1, 6))}
    assert "<script>0" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert str(tmp_path) not in page
    assert "sdk: static" in (tmp_path / "site/README.md").read_text()


def test_an_export_of_a_soft_label_that_is_no_number_is_json(tmp_path, pool):
    store, rows = Store(tmp_path / "odd"), rows_of(pool, [0] * 6, [0.5] * 6)
    rows[3] |= {"probs": [float("nan")] * 3, "confidence": float("nan")}
    seal_generation(store, rows)
    export(open_contents(store, "bugs", pool=str(pool)), tmp_path / "site", False, Progress())
    data = re.search(r'id="nst-data">(.*?)</script>', (tmp_path / "site/index.html").read_text(), re.DOTALL)[1]
    items = {item["id"]: item for item in json.loads(data, parse_constant=pytest.fail)["items"]}
    assert (items[3]["margin"], items[0]["margin"], items[0]["entropy"]) == (None, 0, pytest.approx(np.log(3), abs=1e-4))


def test_an_export_of_some_of_the_images_says_of_how_many(tmp_path, monkeypatch, store, pool):
    balance(store, "bugs@gen-1", BalanceSettings(min_confidence=0.6, per_class="none"))
    contents = open_contents(store, "bugs@gen-1.1")
    monkeypatch.setattr("nst_cli.look.export.MAX_IMAGES", 4)
    assert build_page(contents, False, Progress())["overview"]["sampled"] == {"rows": 5, "of": 6}
    monkeypatch.setattr("nst_cli.look.export.MAX_IMAGES", 600)
    assert build_page(contents, False, Progress())["overview"]["sampled"] is None


def test_an_export_gives_larger_classes_the_places_that_small_ones_leave(tmp_path, monkeypatch, pool):
    store = Store(tmp_path / "uneven")
    sealed(store, pool, labels=(0, 1, 0, 0, 2, 0))
    monkeypatch.setattr("nst_cli.look.export.MAX_IMAGES", 5)
    items = build_page(open_contents(store, "bugs@gen-1"), False, Progress())["items"]
    assert [item["label"] for item in items] == ["ant", "ant", "ant", "bee", "cat"]


def test_an_export_has_what_people_answered_before_all_else(monkeypatch, store):
    open_contents(store, "bugs@gen-1").answer({"id": 4, "class": "cat"})
    monkeypatch.setattr("nst_cli.look.export.MAX_IMAGES", 4)
    items = build_page(open_contents(store, "bugs@gen-1"), False, Progress())["items"]
    assert (items[0]["id"], items[0]["answer"]) == (4, {"class": "cat"})


def test_a_card_shows_a_picture_of_the_export_where_that_is_asked_for(tmp_path, store, pool):
    sealed(store, pool)
    version = store.open("bugs@gen-2")
    contents = open_contents(store, version.ref)
    export(contents, tmp_path / "site", False, Progress())
    assert not (version.folder / "look.png").exists()
    export(contents, tmp_path / "site", False, Progress(), version)
    assert "![Some of the images with their labels](look.png)" in (version.folder / "README.md").read_text()
    with Image.open(version.folder / "look.png") as picture:
        assert picture.size == (6 * 158 + 8, 180 + 8)
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 6
    assert version.verify() == []
    for image in pool.iterdir():
        image.unlink()
    with pytest.raises(NstError, match=r"bugs@gen-2: none of its images.*card.*`pool`"):
        export(open_contents(store, version.ref), tmp_path / "other", False, Progress(), version)


def test_an_anonymous_export_names_no_key_no_hash_and_no_reviewer(tmp_path, store, pool):
    contents = open_contents(store, "bugs@gen-1", reviewer="ada")
    contents.answer({"id": 0, "class": "bee"})
    for _ in range(2):
        export(contents, tmp_path / "site", True, Progress())
    page = (tmp_path / "site/index.html").read_text()
    hidden = ["ada", str(pool), *(file.name for file in pool.iterdir()), *(image_hash(file.read_bytes()) for file in pool.iterdir())]
    assert [name for name in hidden if f'"{name}' in page] == []
    assert '"key":"image 1"' in page
    (tmp_path / "site/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"`export`.*/site:.*'README\.md'.*an empty folder"):
        export(contents, tmp_path / "site", True, Progress())


def test_of_many_rows_a_sample_is_read_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("nst_data.tables.shards.ROW_GROUP_ROWS", 10)
    rows = [label_row(number, str(number), number % 3, 0.5, key=f"{number}.png") for number in range(25)]
    version = seal_generation(Store(tmp_path / "many"), rows)
    sample = LabelRows(version, max_rows=15)
    assert (len(sample), sample.total_rows, sample.is_sample) == (10, 25, True)
    assert sample.take([9, 0], ["key"])["key"].to_list() == ["19.png", "10.png"]
    assert sample.read(["id"])["id"].to_list() == list(range(10, 20))
    assert not LabelRows(version).is_sample


def test_images_are_sorted_by_key_whatever_order_they_are_stored_in(tmp_path, pool):
    store, files = Store(tmp_path / "store"), ["5", "0", "ü", "b", "a/2", "10"]
    rows = [label_row(number, file.encode(), number % 3, 0.9, key=file) for number, file in enumerate(files)]
    seal_generation(store, rows)
    browser = visit(open_contents(store, "bugs@gen-1", pool=str(pool)))
    assert keys_of(browser, sort="key") == sorted(files)
    assert keys_of(browser, sort="key", offset=2, limit=2) == sorted(files)[2:4]
    assert keys_of(browser) == files
    labeled = write_class_folders(tmp_path / "labeled", ["ant", "bee"], 2)
    names = sorted(path.relative_to(labeled).as_posix() for path in labeled.rglob("*.png"))
    (labeled / "labels.csv").write_text("\n".join(["path,label", *(f"{name},x" for name in names[::-1])]))
    looked_at = visit(open_contents(store, str(labeled / "labels.csv")))
    assert keys_of(looked_at, sort="key") == names
    assert keys_of(looked_at) == names[::-1]
