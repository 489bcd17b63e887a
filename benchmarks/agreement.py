"""Whether the ways to a network's labels agree: evaluate, label, adopt of what timm writes, and the exported ONNX file.

python benchmarks/agreement.py CLOTHING MODEL [--per-class 20] [--seed 0]

CLOTHING is a folder with train.parquet and test.parquet (`image`, `label`), MODEL a timm network with published weights. A linear
probe of it is trained on some images a class, and the test images are labeled in each way. timm and onnxruntime get images from
timm's own transform (`exact` labels too), so that pixels are the same in all.
"""

import argparse
import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image

from nst_data import Store, adopt, open_source
from nst_data.progress import Progress
from nst_data.sources.subset import Subset
from nst_data.tables.label_tables import scan_labels
from nst_train import EvaluateSettings, LabelSettings, TrainSettings, evaluate, export_network, label, train


def labels_of(version):
    return pl.Series(scan_labels(version).sort("id").collect()["label"]).to_numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clothing", type=Path)
    parser.add_argument("model")
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    quiet = Progress()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        store = Store(top / "store")
        all_images, file = open_source(arguments.clothing / "train.parquet", labeled=True), arguments.clothing / "test.parquet"
        rng = np.random.default_rng(arguments.seed)
        classes = [np.flatnonzero(all_images.labels == place) for place in range(len(all_images.class_names))]
        rows = np.sort(np.concatenate([rng.choice(class_rows, arguments.per_class, replace=False) for class_rows in classes]))
        settings = TrainSettings(model=arguments.model, pretrained=True, probe=True)
        teacher = train(store, "clothes", Subset(all_images, rows, "drawn"), settings, progress=quiet)
        test = open_source(file, labeled=True)
        labels_by_method = {"label": labels_of(label(store, "own", teacher.ref, open_source(file), LabelSettings(), progress=quiet))}
        exact = LabelSettings(exact_transform=True)
        labels_by_method["label --exact-transform"] = labels_of(
            label(store, "exact", teacher.ref, open_source(file), exact, progress=quiet)
        )

        network = timm.create_model(f"local-dir:{teacher.folder}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
        images = pq.read_table(file)["image"].to_pylist()
        pixels = torch.stack([transform(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in images])
        with torch.no_grad():
            probs = torch.cat([network(batch).softmax(1) for batch in pixels.split(32)])
        top5 = probs.topk(5)
        with (top / "timm.csv").open("w", newline="") as out:  # as inference.py --topk 5 --include-index writes them
            writer = csv.writer(out)
            writer.writerow(["filename", *(f"index_{k}" for k in range(5)), *(f"prob_{k}" for k in range(5))])
            for row, (index, prob) in enumerate(zip(top5.indices.tolist(), top5.values.tolist(), strict=True)):
                writer.writerow([test.key(row), *index, *prob])
        (top / "names.txt").write_text("\n".join(test.class_names) + "\n")
        options = {"pool": open_source(file), "class_names": str(top / "names.txt"), "progress": quiet}
        labels_by_method["adopt of timm's output"] = labels_of(adopt(store, "adopted", str(top / "timm.csv"), **options))

        exported = export_network(store, teacher.ref, top / "clothes.onnx", progress=quiet)
        session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == test.class_names
        logits = np.concatenate([session.run(None, {"pixels": batch.numpy()})[0] for batch in pixels.split(32)])
        labels_by_method["export --to onnx"] = logits.argmax(1)

        result = evaluate(store, teacher.ref, test, EvaluateSettings(), progress=quiet)
        print(f"{len(test):,} images; evaluate: {round(result['top1'] * len(test)):,} right")
        for name, labels in labels_by_method.items():
            agrees, correct = int((labels == probs.argmax(1).numpy()).sum()), int((labels == test.labels).sum())
            print(f"{name}: as timm on {agrees:,}, {correct:,} right")


if __name__ == "__main__":
    main()
