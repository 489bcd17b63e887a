"""The page of `nst look` in a browser: filters, keys, address, answers, and that anybody can use it."""

import json
import re
import shutil
import subprocess
import sys

import polars as pl
import pyarrow as pa
import pytest

pytest.importorskip("playwright")
from browsing import CHROMIUM, Visit, browser_of_debian, serve_look, true_digit, write_digits_store
from conftest import TINY, write_class_folders, write_pool
from playwright.sync_api import expect
from sealed_labels import label_row, seal_generation

from nst_data.inspection.quality import quality
from nst_data.review.answers import AnswerLog
from nst_data.review.freeze import freeze
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.label_tables import scan_labels
from nst_data.tables.schema import errors_schema
from nst_data.tables.shards import write_parquet
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is missing")]


@pytest.fixture(scope="module")
def browser():
    with browser_of_debian() as browser:
        yield browser


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits_store(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def address(digits):
    with serve_look("digits@gen-1.1", "--store", digits[1].root) as (_, address):
        yield address


def shown(page):
    """Of each image in the grid: what its button is called."""
    return [button.get_attribute("aria-label") for button in page.locator("#grid button").all()]


def confidences(page):
    return [float(re.search(r"confidence ([\d.]+)%", name).group(1)) for name in shown(page)]


def fragment(page):
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def test_it_opens_on_figures_and_thumbnails_and_asks_nobody_else(browser, address):
    with Visit(browser) as visit:
        page = visit.open(address)
        assert "token" not in page.url
        expect(page.locator("#count")).to_have_text(re.compile(r"1.60 of [\d,]+ images"))
        assert page.locator("#grid img").evaluate_all("images => images.filter((image) => image.naturalWidth > 0).length") == 60
        assert page.locator("#histogram button").count() == 20
        assert {url.split("/")[2] for url in visit.requests} == {address.split("/")[2]}
        assert visit.problems == []


def test_a_bar_a_class_and_an_order_filter_and_the_address_holds_them(browser, address):
    with Visit(browser) as visit:
        page = visit.open(address)
        page.locator("#overview").get_by_role("button", name=re.compile("^8: ")).click()
        page.locator("#by-sort").select_option("confidence")
        visit.wait_until_loaded()
        lowest = confidences(page)
        assert lowest == sorted(lowest)
        assert all(name.startswith("8, ") for name in shown(page))
        bar = page.locator(f"#histogram button[data-min='{int(lowest[0] // 5) * 5 / 100:g}']")
        bar.click()
        visit.wait_until_loaded()
        expect(bar).to_have_attribute("aria-pressed", "true")
        assert fragment(page).keys() == {"class", "sort", "min", "max"}
        few = shown(page)
        assert 0 < len(few) == sum(value // 5 == lowest[0] // 5 for value in lowest)
        page.reload()
        visit.wait_until_loaded()
        assert shown(page) == few
        page.go_back()
        visit.wait_until_loaded()
        assert confidences(page) == lowest
        assert visit.problems == []


def test_an_address_past_the_end_shows_the_last_page_and_a_refused_one_only_says_why(browser, address):
    with Visit(browser) as visit:
        page = visit.open(address, "#class=8&start=Infinity")
        visit.wait_until_loaded()
        start = int(fragment(page).get("start", 0))
        total = int(re.search(r"(\d+) images", page.locator("#count").inner_text()).group(1))
        assert len(shown(page)) == total - start > 0
        assert visit.problems == []
        visit.page.goto("about:blank")
        visit.page.goto(address + "#class=8&min=7")
        expect(page.locator("#problem")).to_have_text("min=7: expected a number from 0 to 1")
        expect(page.locator("#count")).to_have_text("")


def test_the_keyboard_alone_goes_everywhere(browser, address):
    with Visit(browser) as visit:
        page = visit.open(address)
        keys = page.keyboard
        keys.press("g")
        first, second = shown(page)[:2]
        keys.press("ArrowRight")
        expect(page.locator("#grid :focus")).to_have_attribute("aria-label", second)
        keys.press("Enter")
        expect(page.locator("#viewer .place")).to_have_text(re.compile("^2 of "))
        expect(page.locator("#viewer .tops li")).to_have_count(5)
        keys.press("ArrowLeft")
        expect(page.locator("#viewer .place")).to_have_text(re.compile("^1 of "))
        assert first.endswith(page.locator("#viewer .code").first.inner_text())
        keys.press("Escape")
        expect(page.locator("#viewer")).not_to_be_visible()
        expect(page.locator("#grid :focus")).to_have_attribute("aria-label", first)
        keys.press("]")
        visit.wait_until_loaded()
        expect(page.locator("#count")).to_have_text(re.compile("^61.120 of"))
        keys.press("?")
        expect(page.locator("#keys")).to_be_visible()
        keys.press("Escape")
        page.locator("#histogram button").first.focus()
        keys.press("End")
        keys.press("Enter")
        visit.wait_until_loaded()
        assert fragment(page) == {"min": "0.95", "max": "1"}
        keys.press("x")
        visit.wait_until_loaded()
        assert fragment(page) == {}
        assert visit.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_nothing_sticks_out(browser, address, scheme, width):
    with Visit(browser, width=width, scheme=scheme) as visit:
        page = visit.open(address, "#sort=confidence&class=3&max=0.6")
        assert visit.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.locator("#grid button").first.click()
        expect(page.locator("#viewer .stage img")).to_be_visible()
        assert visit.violations() == []
        assert page.locator("#viewer .panel").evaluate("panel => panel.scrollWidth - panel.clientWidth") <= 0
        page.keyboard.press("Escape")
        page.locator("#help").click()
        assert visit.violations() == []
        assert visit.problems == []


def test_names_are_text_whatever_they_hold_and_one_of_many_classes_is_typed(browser, tmp_path):
    hostile = "<img src=x onerror=alert(1)>"
    classes = [hostile, "bee' onclick='alert(2)", "{{ 7*7 }}", *(f"kind {number}" for number in range(9))]
    folder = write_class_folders(tmp_path / "labeled", classes, 2)
    with serve_look(folder, "--store", tmp_path / "store", "--corpus", "bugs") as (_, address), Visit(browser) as visit:
        page = visit.open(address, "#class=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
        expect(page.locator("#grid .label").first).to_have_text(hostile)
        expect(page.locator("#chips")).to_contain_text(hostile)
        page.locator("#grid button").first.click()
        expect(page.locator("#viewer h2")).to_contain_text(hostile)
        assert page.locator("[onerror], [onclick]").count() == 0
        page.keyboard.press("c")
        page.keyboard.type("7*")
        page.keyboard.press("Enter")
        expect(page.locator("#viewer .place")).to_have_text("2 of 2")
        page.keyboard.press("Escape")
        expect(page.locator("#grid .badge.good")).to_have_text("✓ {{ 7*7 }}")
        assert visit.problems == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_long_class_name_sticks_out_nowhere_and_is_read_beyond_its_first_word(browser, tmp_path, width):
    names = ["species of the western palearctic 1", "species of the western palearctic 2" + "/kingdom/phylum/order".replace("/", "_") * 6]
    folder = write_class_folders(tmp_path / "labeled", names, 2)
    with serve_look(folder, "--store", tmp_path / "store", "--corpus", "birds") as (_, address), Visit(browser, width=width) as visit:
        page = visit.open(address, f"#class={names[1]}")
        label = page.locator("#grid .label").first
        assert label.evaluate("label => label.clientHeight / parseFloat(getComputedStyle(label).lineHeight)") > 1.5
        page.keyboard.press("g")
        page.keyboard.press("y")
        page.keyboard.press("Enter")
        expect(page.locator("#viewer .review")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#viewer .panel").evaluate("panel => panel.scrollWidth - panel.clientWidth") <= 0
        assert visit.problems == []


def test_a_class_is_typed_where_there_are_few_and_its_letters_answer_nothing(browser, tmp_path):
    folder = write_class_folders(tmp_path / "labeled", ["pants", "skirt", "sunny"], 2)
    with serve_look(folder, "--store", tmp_path / "store", "--corpus", "clothes") as (_, address), Visit(browser) as visit:
        page = visit.open(address)
        keys = page.keyboard
        keys.press("r")
        expect(page.locator("#viewer .place")).to_have_text("1 of 6")
        keys.press("c")
        keys.type("pantsyzun")
        expect(page.locator("#other")).to_have_value("pantsyzun")
        keys.press("Enter")
        expect(page.locator("#note")).to_have_text("No class is called pantsyzun.")
        assert visit.violations() == []
        keys.press("Escape")
        expect(page.locator("#typing")).not_to_be_visible()
        expect(page.locator("#viewer .place")).to_have_text("1 of 6")
        keys.press("c")
        keys.type("sun")
        keys.press("Enter")
        expect(page.locator("#viewer .place")).to_have_text("2 of 6")
        keys.press("Escape")
        expect(page.locator("#viewer")).not_to_be_visible()
        visit.wait_until_loaded()
        page.locator("#by-reviewed").select_option("")
        visit.wait_until_loaded()
        keys.press("g")
        keys.press("End")
        keys.press("c")
        keys.type("skirt")
        keys.press("Enter")
        expect(page.locator("#grid .badge.good")).to_have_text(["✓ sunny", "✓ skirt"])
        assert visit.problems == []
    written = (tmp_path / "store/reviews/clothes/ana.jsonl").read_text().splitlines()
    assert [json.loads(line)["class"] for line in written] == ["sunny", "skirt"]


def test_the_next_two_images_are_there_before_a_key_asks_for_them_and_no_key_answers_one_that_is_not(browser, tmp_path):
    folder = write_class_folders(tmp_path / "labeled", ["ant", "bee"], 3)
    with serve_look(folder, "--store", tmp_path / "store", "--corpus", "bugs") as (_, address), Visit(browser) as visit:
        page = visit.open(address)
        page.keyboard.press("r")
        expect(page.locator("#viewer .place")).to_have_text("1 of 6")
        page.evaluate("Promise.all(viewer.coming.values()).then(() => viewer.coming.size)")
        page.route("**/api/image/*", lambda route: route.abort())
        for place in (2, 3):
            page.keyboard.press("n")
            expect(page.locator("#viewer .place")).to_have_text(f"{place} of 6")
            expect(page.locator("#viewer .code").first).to_be_visible()
        page.keyboard.press("n")
        expect(page.locator("#viewer-title")).to_have_text("Not shown")
        page.keyboard.press("n")
        page.unroute("**/api/image/*")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#viewer .given")).to_have_text("Your answer: none of these")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer .place")).to_have_text("4 of 6")
        expect(page.locator("#viewer .given")).to_have_count(0)
    assert len((tmp_path / "store/reviews/bugs/ana.jsonl").read_text().splitlines()) == 3


def review_slowly(page):
    """Open the first of six images on a page that needs 0.3 s to keep an answer."""
    page.keyboard.press("r")
    expect(page.locator("#viewer .place")).to_have_text("1 of 6")
    slow = "(keep) => (body) => new Promise((end) => setTimeout(end, 300)).then(() => keep(body))"
    page.evaluate(f"void (data.answer = ({slow})(data.answer))")


def test_a_key_answers_the_image_that_is_shown_once_however_quick_or_long_it_is_pressed(browser, tmp_path):
    folder = write_class_folders(tmp_path / "labeled", ["ant", "bee"], 3)
    with serve_look(folder, "--store", tmp_path / "store", "--corpus", "bugs") as (_, address), Visit(browser) as visit:
        page = visit.open(address)
        review_slowly(page)
        page.keyboard.press("n")
        page.keyboard.press("u")
        expect(page.locator("#viewer .place")).to_have_text("2 of 6")
        expect(page.locator("#note")).to_contain_text("The key after it came too soon: press it again.")
        page.keyboard.press("u")
        expect(page.locator("#viewer .place")).to_have_text("3 of 6")
        expect(page.locator("#note")).to_have_text("unusable. Press z to take it back.")
        page.keyboard.down("n")
        expect(page.locator("#viewer .place")).to_have_text("4 of 6")
        page.keyboard.down("n")
        page.wait_for_timeout(400)
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer .place")).to_have_text("5 of 6")
    written = map(json.loads, (tmp_path / "store/reviews/bugs/ana.jsonl").read_text().splitlines())
    assert [line["excluded"] for line in written] == ["none of these", "unusable", "none of these"]


def test_images_that_could_not_be_read_are_not_left_to_review_and_similar_ones_need_features(browser, tmp_path):
    pool, store = write_pool(tmp_path / "pool", 2, 2), Store(tmp_path / "store")
    kept = [label_row(row, path.read_bytes(), row % 2, 0.5, key=path.name) for row, path in enumerate(sorted(pool.iterdir()))]
    version = seal_generation(store, kept, pool=open_source(pool).lineage)
    unread = pa.Table.from_pylist([{"id": 4, "key": "z.png", "reason": "not an image"}], schema=errors_schema())
    write_parquet(version.folder / "errors/train-00000-of-00001.parquet", [unread], unread.schema)
    with serve_look(version.ref, "--store", store.root) as (_, address), Visit(browser) as visit:
        page = visit.open(address, "#errors=1")
        page.locator("#grid button").click()
        expect(page.locator("#viewer-title")).to_have_text("Not readable")
        expect(page.locator("#viewer .place")).to_have_text("1 of 1")
        page.wait_for_timeout(300)  # an answer that says how many are left would have come
        expect(page.locator("#viewer .left")).to_have_text("")
        expect(page.locator("#viewer .panel")).not_to_contain_text("Similar images")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer .finished")).not_to_contain_text("left without an answer")
        visit.open(address, "#image=0")
        expect(page.locator("#viewer .left")).to_have_text("4 left to review")
        expect(page.locator("#viewer .panel")).to_contain_text("Similar images appear after nst embed")


def test_an_image_that_is_missing_takes_no_answer(browser, tmp_path):
    pool, store = write_pool(tmp_path / "pool", 2, 1), Store(tmp_path / "store")
    kept = [label_row(row, path.read_bytes(), row % 2, 0.5, key=path.name) for row, path in enumerate(sorted(pool.iterdir()))]
    version = seal_generation(store, kept, pool=open_source(pool).lineage)
    (pool / kept[0]["key"]).unlink()
    with serve_look(version.ref, "--store", store.root) as (_, address), Visit(browser) as visit:
        page = visit.open(address)
        page.locator("#grid button").first.focus()
        page.keyboard.press("u")
        expect(page.locator("#note")).to_contain_text("this image cannot be shown")
        page.keyboard.press("r")
        expect(page.locator("#viewer .stage .missing")).to_contain_text("lacks")
        page.keyboard.press("y")
        expect(page.locator("#note")).to_contain_text("this image cannot be shown")
        page.keyboard.press("s")
        expect(page.locator("#viewer .stage img")).to_be_visible()
        page.keyboard.press("y")
        expect(page.locator("#note")).to_contain_text("Press z to take it back")
    (line,) = (store.root / "reviews" / version.name / "ana.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == kept[1]["key"]


def test_an_export_opens_from_disk_and_filters_and_asks_nobody(browser, digits, tmp_path):
    store = Store(shutil.copytree(digits[1].root, tmp_path / "store"))
    some = scan_labels(store.open("digits@gen-1.1")).head(1).collect()
    AnswerLog(store, "digits", "eva").append(some["image_hash"][0], some["key"][0], excluded="unusable")
    command = [sys.executable, "-m", "nst_cli", "look", "digits@gen-1.1", "--store", store.root, "--export", tmp_path / "page"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    with Visit(browser) as visit:
        page = visit.open((tmp_path / "page" / "index.html").as_uri(), "#class=8&sort=confidence")
        expect(page.locator("#seen")).to_have_text("1 answer")
        assert not any("dropped" in name for name in shown(page))  # as on the page that is served
        assert confidences(page) == sorted(confidences(page))
        assert all(name.startswith("8, ") for name in shown(page))
        page.get_by_role("button", name=re.compile("^dropped, low confidence")).click()
        visit.wait_until_loaded()
        assert len(shown(page)) > 0
        assert all("dropped: low confidence" in name for name in shown(page))
        page.locator("#grid button").first.click()
        expect(page.locator("#viewer .tops li")).to_have_count(5)
        assert page.locator("#viewer .stage img").evaluate("image => image.naturalWidth") == 8
        expect(page.locator("#review")).not_to_be_visible()
        assert {url.partition(":")[0] for url in visit.requests} <= {"file", "data"}
        assert visit.violations() == []
        assert visit.problems == []


def test_an_anonymous_export_does_not_take_images_without_a_hash_for_unreadable(browser, tmp_path):
    folder = write_class_folders(tmp_path / "labeled", ["ant", "bee"], 1)
    command = [sys.executable, "-m", "nst_cli", "look", folder, "--store", tmp_path / "store", "--export", tmp_path / "page", "--anonymous"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    with Visit(browser) as visit:
        page = visit.open((tmp_path / "page" / "index.html").as_uri())
        page.locator("#grid button").first.click()
        expect(page.locator("#viewer dl")).to_have_text("Keyimage 1")


def test_answers_outlive_a_killed_server_and_are_trained_on(browser, digits):
    folder, store = digits
    start = ("digits@gen-1", "--store", store.root)
    given = {}
    with Visit(browser) as visit, serve_look(*start) as (process, address):
        page = visit.open(address, "#class=8&sort=confidence")
        least = shown(page)
        page.keyboard.press("r")
        for number in range(6):
            expect(page.locator("#viewer .left")).to_have_text(re.compile(r"^\d+ left"))
            key = page.locator("#viewer .code").first.inner_text()
            assert least[number].endswith(key)
            given[key] = true_digit(key) if number < 5 else "none of these"
            page.keyboard.press(given[key] if number < 5 else "n")
            expect(page.locator("#viewer .code").first).not_to_have_text(key)
        process.kill()
        process.wait()
        page.keyboard.press("y")
        expect(page.locator("#note")).to_contain_text("Not saved: No answer from nst look")
    with Visit(browser) as visit, serve_look(*start) as (_, address):
        page = visit.open(address, "#class=8&sort=confidence&reviewed=yes")
        expect(page.locator("#seen")).to_have_text("ana: 6 of 6 answers")
        answers = {name.split(", ")[-1]: re.search("answered: ([^,]+)", name).group(1) for name in shown(page)}
        assert answers == given
        page.keyboard.press("r")
        visit.wait_until_loaded()
        expect(page.locator("#viewer .place")).to_have_text(re.compile("^1 of "))
        assert least[6].endswith(page.locator("#viewer .code").first.inner_text())
    review = freeze(store, "digits")
    assert (review.ref, review.manifest.counts.reviewers) == ("digits@review-1", {"ana": 6})
    edition = balance(store, "digits@gen-1", BalanceSettings(min_confidence=0.2, per_class=90), reviews=review)
    assert (edition.manifest.counts.dropped["answered"], edition.manifest.counts.dropped["none_of_these"]) == (5, 1)
    student = train(
        store,
        "digits-student",
        open_source(str(folder / "labeled"), labeled=True),
        TrainSettings(**{name: value for name, value in TINY.items() if name != "epochs"}, steps=2),
        pseudo=edition,
        reviews=review,
        run=RunSettings(workers=0, decode_threads=1),
    )
    assert student.manifest.request.inputs.reviews.ref == "digits@review-1"
    assert student.manifest.counts.reviewed == 5
    right = sum(truth == "8" for truth in given.values())
    measured = quality(store, "digits@gen-1", review.ref)
    assert (measured.joined, measured.accuracy) == (5, right / 5)


def test_images_that_an_edition_dropped_are_reviewed_too(browser, tmp_path):
    _, store = write_digits_store(tmp_path)
    with serve_look("digits@gen-1.1", "--store", store.root) as (_, address), Visit(browser) as visit:
        page = visit.open(address)
        page.get_by_role("button", name=re.compile("^dropped, low confidence")).click()
        page.get_by_role("button", name=re.compile("^1: ")).click()
        visit.wait_until_loaded()
        dropped = len(shown(page))
        page.keyboard.press("r")
        expect(page.locator("#left")).to_contain_text(f"{dropped} left to review")
        page.keyboard.press("y")
        expect(page.locator("#left")).to_contain_text(f"{dropped - 1} left to review")
        page.keyboard.press("Escape")
        expect(page.locator("#seen")).to_have_text("ana: 1 about dropped images")
        page.reload()
        visit.wait_until_loaded()
        assert len(shown(page)) == dropped - 1
        assert visit.problems == []
    with serve_look("digits@gen-1.1", "--store", store.root) as (_, address), Visit(browser) as visit:
        page = visit.open(address, "#reason=low_confidence&reviewed=yes")
        assert len(shown(page)) == 1
        expect(page.locator("#seen")).to_have_text("ana: 1 about dropped images")


def test_a_disputed_answer_is_shown_and_undone(browser, digits):
    store = digits[1]
    rows = scan_labels(store.open("digits@gen-1")).filter(pl.col("label") == 3).sort("confidence").tail(1).collect()
    AnswerLog(store, "digits", "eva").append(rows["image_hash"][0], rows["key"][0], excluded="unusable")
    with serve_look("digits@gen-1", "--store", store.root) as (_, address), Visit(browser) as visit:
        page = visit.open(address, "#class=3&sort=-confidence")
        total = int(re.fullmatch(r"ana: \d+ of (\d+) answers?", page.locator("#seen").inner_text()).group(1))
        own = page.locator("#seen").inner_text().partition(" of ")[0]
        assert own == f"ana: {total - 1}"  # one is eva's
        page.keyboard.press("g")
        page.keyboard.press("3")
        expect(page.locator("#grid .badges").first).to_contain_text(re.compile("disputed.*✓ 3"))
        page.get_by_role("button", name="1 disputed").click()
        visit.wait_until_loaded()
        expect(page.locator("#grid button")).to_have_count(1)
        page.locator("#grid button").click()
        expect(page.locator("#viewer")).to_contain_text(re.compile("unusable by eva", re.DOTALL))
        expect(page.locator("#viewer")).to_contain_text(re.compile("3 by ana", re.DOTALL))
        page.keyboard.press("z")
        expect(page.locator("#viewer")).not_to_contain_text("disputed")
        expect(page.locator("#viewer .given")).to_have_text("Answer of eva: unusable")
        assert visit.problems == []


def test_who_moves_on_while_an_answer_is_being_kept_moves_once(browser, tmp_path):
    folder = write_class_folders(tmp_path / "labeled", ["ant", "bee"], 3)
    with serve_look(folder, "--store", tmp_path / "store", "--corpus", "bugs") as (_, address), Visit(browser) as visit:
        page = visit.open(address)
        review_slowly(page)
        page.keyboard.press("n")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer .place")).to_have_text("2 of 6")
        expect(page.locator("#note")).to_contain_text("none of these")
        page.wait_for_timeout(200)
        expect(page.locator("#viewer .place")).to_have_text("2 of 6")
