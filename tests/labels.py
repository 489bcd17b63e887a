"""Teachers with random weights, and the tables that labeling wrote."""

import pyarrow.parquet as pq
import timm
import torch
from pictures import png

from nst_data.sources import open_source
from nst_train.networks.models import save_teacher
from nst_train.settings import LabelRunSettings, LabelSettings, TrainSettings

RUN = LabelRunSettings(decode_threads=2)
SETTINGS = LabelSettings(batch_size=4, rows_per_shard=6)


def table_rows(version, table="pseudo_labels"):
    """All rows of a table of a version, as dicts."""
    return [row for file in sorted((version.folder / table).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def write_named_pool(folder, names):
    """A pool of small images that differ, with these names."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number % 4, number))
    return open_source(folder)


def write_teacher(folder, class_names, seed=0, image_size=16):
    """A network with random weights in timm's format, and sure enough of itself that images differ; its name for `--teacher`."""
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=len(class_names))
    with torch.no_grad():
        network.get_classifier().weight.mul_(40)
    folder.mkdir(parents=True)
    save_teacher(network, folder, list(class_names), TrainSettings(model="test_resnet", image_size=image_size, crop_pct=1.0))
    return f"local-dir:{folder}"
