"""The pictures of docs/look.md: `python tests/look_screenshots.py docs` takes them anew, of the digits, in Debian's Chromium."""

import io
import sys
import tempfile
from pathlib import Path

from browsing import Visit, browser_of_debian, serve_look, true_digit, write_digits_store
from PIL import Image
from playwright.sync_api import expect

COLORS = 200  # a page has few: half of the bytes


def save_screenshot(visit, file):
    """A small PNG of what the window shows."""
    visit.wait_until_loaded()
    with Image.open(io.BytesIO(visit.page.screenshot())) as image:
        image.convert("RGB").quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def review(page, number):
    """Answer the first images of the view with the truth, the second as none of the classes; the next one stays open."""
    page.keyboard.press("r")
    for at in range(number):
        key = page.locator("#viewer .code").first.inner_text()
        page.keyboard.press("n" if at == 1 else true_digit(key))
        expect(page.locator("#viewer .code").first).not_to_have_text(key)
    page.evaluate("byId('note').classList.remove('shown')")


def take_screenshots(folder):
    """Four screenshots into `folder`."""
    with tempfile.TemporaryDirectory() as top, browser_of_debian() as browser:
        _, store = write_digits_store(Path(top), strengths=(1.0, 10.0))
        with serve_look("digits@gen-2.1", "--store", store.root) as (_, address), Visit(browser, height=800) as visit:
            visit.open(address)
            save_screenshot(visit, folder / "look-overview.png")
        with serve_look("digits@gen-2", "digits@gen-1", "--store", store.root) as (_, address):
            with Visit(browser, height=800) as visit:
                page = visit.open(address, "#disagree=1&sort=confidence")
                review(page, 4)
                page.keyboard.press("Escape")
                visit.open(address, "#disagree=1&sort=confidence")
                save_screenshot(visit, folder / "look-compare.png")
            with Visit(browser, height=800, scheme="dark") as visit:
                page = visit.open(address, "#disagree=1&sort=confidence&reviewed=no")
                page.keyboard.press("g")
                page.keyboard.press("Enter")
                expect(page.locator("#viewer .stage img")).to_be_visible()
                save_screenshot(visit, folder / "look-review.png")
            with Visit(browser, width=390, height=800, scheme="dark") as visit:
                visit.open(address, "#sort=confidence&max=0.6")
                save_screenshot(visit, folder / "look-phone.png")


if __name__ == "__main__":
    take_screenshots(Path(sys.argv[1]))
