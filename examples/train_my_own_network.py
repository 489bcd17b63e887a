"""Noisy Student Training with a network of your own, through the Python API.

    python examples/train_my_own_network.py LABELED POOL TEST STORE

LABELED and TEST are folders with a folder per class, POOL is a folder of images without labels. It does step by step what `nst run` does
with a recipe. Run again, it resumes where it stopped: everything it makes is kept in STORE.
"""

import sys

from timm.layers import DropPath
from torch import Tensor, nn

from nst_data import BalanceSettings, Store, balance, open_source
from nst_train import Noise, RunSettings, TrainSettings, evaluate, label, register_network, train

SIZE_PX = 32


class Block(nn.Module):
    """Adds to what it gets; stochastic depth skips it."""

    def __init__(self, width: int, skipped: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.drop_path = DropPath(skipped)

    def forward(self, features: Tensor) -> Tensor:
        """The same shape."""
        return features + self.drop_path(self.layers(features))


def my_network(classes: int, drop_path_rate: float = 0.0) -> nn.Module:
    """Any module that maps images to logits will do; this one takes a rate of stochastic depth, which rises from block to block."""
    blocks = 4
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 4, stride=4), nn.BatchNorm2d(32), nn.ReLU()),
        *(Block(32, drop_path_rate * index / (blocks - 1)) for index in range(blocks)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)),
    )


def main(labeled_folder: str, pool_folder: str, test_folder: str, store_folder: str, epochs: float = 60) -> None:
    """Algorithm 1, steps 1 to 3, and how well teacher and student do."""
    register_network("my_network", my_network, image_size=SIZE_PX)
    store, run = Store(store_folder), RunSettings(workers=1)
    labeled, test = open_source(labeled_folder, labeled=True), open_source(test_folder, labeled=True)
    pool = open_source(pool_folder)
    common = {"model": "my_network", "epochs": epochs, "batch_size": 16, "optimizer": "adamw", "learning_rate": 0.02, "ema_decay": 0.99}
    mild = Noise(magnitude=5, operations=1, dropout=0.1, stochastic_depth=0)
    strong = Noise(magnitude=9, operations=2, dropout=0.2, stochastic_depth=0.1)

    teacher = train(store, "my-teacher", labeled, TrainSettings(**common, noise=mild), run=run)
    corpus = label(store, "my-labels", teacher, pool)
    edition = balance(store, corpus, BalanceSettings(per_class=len(pool) // len(teacher.manifest.class_names)))
    student = train(store, "my-teacher", labeled, TrainSettings(**common, ratio=3, noise=strong), pseudo=edition, run=run)
    for network in (teacher, student):
        print(f"{network.ref}: top-1 {evaluate(store, network, test, record='test', run=run)['top1']:.1%}")


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*sys.argv[1:5], *map(float, sys.argv[5:]))
