"""A tiny store as an earlier nst left it: `earlier_store.zip`, beside the images that it was made from.

`python tests/earlier_store.py FOLDER` made it at the last commit before the code moved into packages: a teacher, a generation, an edition,
a labeling of which one shard of three is done, a training with a checkpoint. Later commits only read it; what it holds is never made again.
Pictures and cards, which lie outside the seal and are written anew, are left out.
"""

import signal
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

from conftest import TINY, write_class_folders, write_pool
from torch import nn

from nst_data.progress import Progress
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.interruption import Interrupted
from nst_train.labeling.label import label
from nst_train.networks.own_networks import register_network
from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

ZIP = Path(__file__).with_name("earlier_store.zip")
EARLIER = {"weight_decay_on": "weights", "channels_last": False}  # what that nst did by default
TEACHER = TrainSettings(
    **TINY | EARLIER | {"model": "earlier_network", "noise": {"magnitude": 5, "operations": 1, "dropout": 0.1, "stochastic_depth": 0}}
)
STUDENT = TEACHER.model_copy(update={"ratio": 2, "epochs": 4.0})
LABELS, OTHER_LABELS = LabelSettings(batch_size=4, rows_per_shard=6), LabelSettings(batch_size=4, rows_per_shard=6, temperature=2.0)
SELECTION = BalanceSettings(min_confidence=0, per_class=8)
RUN, READING = RunSettings(workers=0, decode_threads=1), LabelRunSettings(decode_threads=1)


def network(classes):
    """Some hundred weights, batch-norm among them."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    )


def unpack(folder):
    """(store, labeled images, pool) in a folder."""
    with zipfile.ZipFile(ZIP) as packed:
        packed.extractall(folder)
    register_network("earlier_network", network, image_size=16)
    return Store(folder / "store"), open_source(str(folder / "labeled"), labeled=True), open_source(str(folder / "pool"))


class _ActAfter(Progress):
    """Does something once so many units of a task are done."""

    def __init__(self, after, act):
        self.after, self.act = after, act

    @contextmanager
    def task(self, name, total, unit, done=0):
        yield self

    def advance(self, amount, note=""):
        self.after -= amount
        if self.after <= 0:
            self.act()


def _interrupt():
    raise KeyboardInterrupt


def make_store(folder):
    """Make the store and the images in a folder, and pack them."""
    register_network("earlier_network", network, image_size=16)
    labeled = open_source(str(write_class_folders(folder / "labeled", ["ant", "bee", "cat"], 4)), labeled=True)
    pool, store = open_source(str(write_pool(folder / "pool", 3, 5))), Store(folder / "store")
    teacher = train(store, "bugs-teacher", labeled, TEACHER, run=RUN)
    corpus = label(store, "bugs", teacher.ref, pool, LABELS, run=READING)
    edition = balance(store, corpus, SELECTION, exclude=[labeled])
    with suppress(KeyboardInterrupt):
        label(store, "bugs", teacher.ref, pool, OTHER_LABELS, run=READING, progress=_ActAfter(7, _interrupt))
    stop = _ActAfter(5 * 12, lambda: signal.raise_signal(signal.SIGUSR1))
    with suppress(Interrupted):
        train(store, "bugs-teacher", labeled, STUDENT, pseudo=edition, pool=pool, generation=1, run=RUN, progress=stop)
    with zipfile.ZipFile(ZIP, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".md" and not (path.suffix == ".png" and store.root in path.parents):
                packed.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    make_store(Path(sys.argv[1]).absolute())
