"""The documentation site: it builds strictly, every link and anchor resolves, nothing comes from elsewhere, the search works from disk."""

import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from browsing import browser_of_debian

import nst_data
import nst_train

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.anchors |= {of["id"]} if of.get("id") else set()
        if tag == "a" and of.get("href"):
            self.links.append(of["href"])
        elif tag in {"img", "script", "link"} and of.get("rel") != "canonical":
            self.loaded += [of[name] for name in ("src", "href") if of.get(name)]


@pytest.fixture(scope="module")
def site():
    """The pages of the site by path, built as `make docs` does."""
    done = subprocess.run([sys.executable, "docs/build.py"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in SITE.rglob("*.html")}


def test_every_link_of_the_site_leads_to_a_page_and_its_anchor(site):
    broken = []
    for path, page in site.items():
        for link in page.links + page.loaded:
            if re.match(r"https://|data:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            there = (path.parent / name).resolve() if name else path
            found = there in site if there.suffix == ".html" else there.is_file()
            if path.name != "404.html" and not (found and (not anchor or anchor in site[there].anchors)):
                broken.append((path.relative_to(SITE).as_posix(), link))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site):
    assert [(path.name, one) for path, page in site.items() for one in page.loaded if "//" in one and not one.startswith("data:")] == []
    assert re.findall(r"url\(.?(?:https?:)?//[^)]*", "".join(file.read_text("utf-8") for file in SITE.rglob("*.css"))) == []


def test_every_page_of_docs_is_in_the_navigation():
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]["nav"]
    pages = re.findall(r"'([\w-]+\.md)'", str(navigation))
    assert sorted(pages) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_api_page_has_every_public_name(site):
    anchors = site[SITE / "python-api.html"].anchors
    settings = (SITE / "settings.html").read_text("utf-8")
    for package in (nst_data, nst_train):
        for name in set(package.__all__) - {"__version__"}:
            assert f"{package.__name__}.{name}" in anchors or f"<code>{name}</code>" in settings, name


@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_opened_from_disk_finds_what_is_searched_for_and_asks_nobody(site, width):
    with browser_of_debian() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((SITE / "formats.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("button.md-search__button, label.md-header__button[for=__search]").locator("visible=true").first.click()
        page.get_by_placeholder("Search").press_sequentially("near-duplicates", delay=20)
        found = page.locator("ol li").filter(has_text="Near-duplicates of held-out images").first
        found.wait_for(timeout=20_000)
        assert page.get_by_placeholder("Search").input_value() == "near-duplicates"
        assert wrong == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
