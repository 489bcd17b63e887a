"""`nst look` in a process of its own, a browser that opens it, and the digits to look at."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
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
def looking(*arguments, reviewer="ana"):
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
        self.asked, self.wrong = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def open(self, address, fragment=""):
        """Open the address; the token is gone from it then, and the images of the first page are asked for."""
        self.page.goto(address + fragment)
        self.settle()
        return self.page

    def settle(self):
        """Until the grid shows what the view asks for, and its images have come."""
        self.page.wait_for_function("grid.loaded === JSON.stringify([view.query(), view.start()])")
        self.page.wait_for_function("[...document.querySelectorAll('main img')].every((image) => image.complete)")

    def violations(self):
        """What axe has to say: rule and element, each."""
        return [(rule["id"], node["target"], node["failureSummary"]) for rule in Axe().run(self.page).response["violations"] for node in rule["nodes"]]


def write_looked_at(top: Path, teachers=1):
    """The digits with `teachers` quick teachers, each with its generation and an edition: (folder of the digits, store)."""
    from nst_data.digits import write_digits
    from nst_data.selection.editions import balance
    from nst_data.settings import BalanceSettings
    from nst_data.sources import open_source
    from nst_data.store.store import Store
    from nst_train.labeling.label import label
    from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
    from nst_train.training.train import train

    write_digits(top / "digits", seed=0)
    store = Store(top / "store")
    network = {"model": "test_resnet", "image_size": 16, "crop_pct": 1.0, "batch_size": 20, "optimizer": "adamw", "learning_rate": 0.1}
    schedule = {"warmup_epochs": 2, "ema_decay": 0.9, "flip": 0.0, "crop_scale_min": 0.8, "compute_threads": 1, "noise": {"operations": 0}}
    labeled = open_source(str(top / "digits" / "labeled"), labeled=True)
    for number in range(teachers):
        settings = TrainSettings(**network, **schedule, epochs=20 + 15 * number, seed=number)
        teacher = train(store, "digits-teacher", labeled, settings, run=RunSettings(workers=0, decode_threads=1))
        pool = open_source(str(top / "digits" / "pool"))
        generation = label(store, "digits", teacher.ref, pool, LabelSettings(batch_size=100), run=LabelRunSettings(decode_threads=1))
        balance(store, generation, BalanceSettings(min_confidence=0.5, per_class=100))
    return top / "digits", store


def truth_of(key):
    """The digit that a file of `write_digits` shows: its name is its place in scikit-learn's table."""
    from sklearn.datasets import load_digits

    return str(load_digits().target[int(Path(key).stem)])
