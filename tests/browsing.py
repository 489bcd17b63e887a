"""`nst look` in a process of its own, a browser that opens it, and the digits to look at."""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_ARGUMENTS += ["--disable-component-update", "--disable-sync"]


@contextmanager
def browser_of_debian():
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def serve_look(*arguments, reviewer="ana"):
    """`nst look ARGUMENTS` while it runs: (process, its address with the token)."""
    command = [sys.executable, "-m", "nst_cli", "look", *map(str, arguments), "--no-browser", "--port", "0", "--reviewer", reviewer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        try:
            address = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=\S+", address), address
            yield process, address
        finally:
            process.kill()


class Visit:
    """A tab of a browser: what it asked for and what went wrong in it. `page` is Playwright's."""

    def __init__(self, browser, width=1280, height=860, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.requests, self.problems = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def open(self, address, fragment=""):
        """Open the address; the token is gone from it then, and the images of the first page are asked for."""
        self.page.goto(address + fragment)
        self.wait_until_loaded()
        return self.page

    def wait_until_loaded(self):
        """Until the grid shows what the view asks for, and its images have come."""
        requests = "grid.loaded === JSON.stringify([view.query(), view.start()])"
        loaded = "[...document.querySelectorAll('img')].every((image) => image.complete)"
        ends = time.monotonic() + 20
        while not self.page.evaluate(f"{requests} && {loaded}"):  # the page's policy forbids what wait_for_function does
            assert time.monotonic() < ends, self.problems
            self.page.wait_for_timeout(20)

    def violations(self):
        """What axe has to say: rule and element, each."""
        broken = Axe().run(self.page).response["violations"]
        return [(rule["id"], node["target"], node["failureSummary"]) for rule in broken for node in rule["nodes"]]


def write_digits_store(top: Path, strengths=(1.0,)):
    """The digits with generations that logistic regressions of these strengths label, an edition each: (folder of the digits, store)."""
    from sklearn.linear_model import LogisticRegression

    from nst_data.adoption import adopt
    from nst_data.digits import write_digits
    from nst_data.selection.editions import balance
    from nst_data.settings import BalanceSettings
    from nst_data.sources import open_source
    from nst_data.store.store import Store

    folder, store = top / "digits", Store(top / "store")
    write_digits(folder, seed=0)
    (top / "names.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    labeled, pool = sorted((folder / "labeled").glob("*/*.png")), sorted((folder / "pool").iterdir())
    for strength in strengths:
        regression = LogisticRegression(C=strength, max_iter=1000).fit(pixels(labeled), [file.parent.name for file in labeled])
        probs = regression.predict_proba(pixels(pool)).tolist()
        table = top / f"labels-{strength}.parquet"
        pl.DataFrame({"key": [file.name for file in pool], "probs": probs}).write_parquet(table)
        names = str(top / "names.txt")
        generation = adopt(store, "digits", str(table), probs="probs", key="key", pool=open_source(str(folder / "pool")), class_names=names)
        balance(store, generation, BalanceSettings(min_confidence=0.4, per_class=90))
    return folder, store


def pixels(files):
    """The gray values of images of one size, a row each, in [0, 1]."""
    return np.stack([np.asarray(Image.open(file), np.float32).ravel() / 255 for file in files])


def true_digit(key):
    """The digit that a file of `write_digits` shows: its name is its place in scikit-learn's table."""
    from sklearn.datasets import load_digits

    return str(load_digits().target[int(Path(key).stem)])
