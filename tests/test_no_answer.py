import json

import numpy as np
import pytest
import torch
from labels import RUN, SETTINGS, write_teacher
from PIL import Image
from safetensors.torch import load_file, save_file

from nst_data.sources import open_source
from nst_data.store import Store
from nst_train.label import label
from nst_train.settings import LabelSettings

NAMES = ["ant", "bee", "cat"]
WHITE = "white.png"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    for index in range(7):
        Image.fromarray(np.full((16, 16, 3), 10 * index, np.uint8)).save(folder / f"{index}.png")
    Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).save(folder / WHITE)
    return folder


def overflowing(folder, pool):
    """A teacher whose logits are finite but for the white image; its name, and whether each image of the pool gets an answer."""
    name = write_teacher(folder, NAMES)
    weights = load_file(folder / "model.safetensors")
    import timm

    network = timm.create_model("test_resnet", num_classes=3).eval()
    network.load_state_dict(weights)
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in sorted(pool.iterdir())]).permute(0, 3, 1, 2) / 255
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(config[part]).view(1, 3, 1, 1) for part in ("mean", "std"))
    with torch.no_grad():
        features = network.forward_head(network.forward_features((images - mean) / std), pre_logits=True).double()
    white, others = features[-1], features[:-1]
    direction = white - others.mean(dim=0)
    scores = features @ direction
    assert scores[-1] > 1.5 * scores[:-1].abs().max()
    weights["fc.weight"] = torch.stack([direction, -direction, direction * 0.5]).mul(3.0e38 / scores[-1] * 1.5).float()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return name


def labeled(store, pool, teacher, corpus="bugs", run=RUN, **settings):
    return label(store, corpus, teacher, open_source(str(pool)), LabelSettings(**SETTINGS.model_dump() | settings), run=run)
