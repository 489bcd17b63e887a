import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from nst_cli.main import app
from PIL import Image
from test_teachers import write_transformer
from timm.data import create_transform
from typer.testing import CliRunner
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.store.store import Store
from nst_train import export_network
from nst_train.classifiers import export as exporting
from nst_train.classifiers.teachers import load_classifier
from nst_train.transforms.preprocessing import decode_pixels


def export_teacher(store, teacher, path, to):
    return export_network(store, teacher, path, to=to, progress=Progress())


def photographs():
    """20 crops of the two photographs that come with scikit-learn, encoded."""
    from sklearn.datasets import load_sample_images

    crops = []
    for pixels in load_sample_images().images:
        for number in range(10):
            top, left = 37 * (number % 5), 90 * (number // 2)
            file = io.BytesIO()
            Image.fromarray(pixels[top : top + 260, left : left + 270 + 10 * number]).save(file, "PNG")
            crops.append(file.getvalue())
    return crops


def logits_of(classifier, encoded):
    preprocessing = classifier.preprocessing
    with torch.no_grad():
        return classifier.network(
            preprocessing.finish(torch.stack([preprocessing.prepare(decode_pixels(one, None, True)) for one in encoded]))
        )


@pytest.mark.slow
def test_torch_export_runs_without_nst_and_knows_its_classes_and_preprocessing(tiny_store, tmp_path):
    store = tiny_store[0]
    written = export_teacher(store, store.open("tiny-teacher@gen-0"), tmp_path / "tiny.pt2", "torch-export")
    extra = {"nst.json": ""}
    program = torch.export.load(tmp_path / "tiny.pt2", extra_files=extra)
    about, classifier = json.loads(extra["nst.json"]), load_classifier("tiny-teacher@gen-0", store)[0]
    assert written.class_names == about["class_names"] == ["ant", "bee", "cat"]
    assert about["preprocessing"] == {**classifier.preprocessing.as_json, "crop_mode": "center"}
    assert about["digest"] == store.open("tiny-teacher@gen-0").manifest.digest
    pixels = torch.randn(5, *about["preprocessing"]["input_size"])
    torch.testing.assert_close(program.module()(pixels), classifier.network(pixels))
    with zipfile.ZipFile(tmp_path / "tiny.pt2") as archive:
        assert all(b"site-packages" not in archive.read(name) for name in archive.namelist())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt2"]


@pytest.mark.slow
def test_a_network_is_written_once_and_other_files_stay(tiny_store, tmp_path, monkeypatch):
    store, path = tiny_store[0], tmp_path / "tiny.pt2"
    export_teacher(store, "tiny-teacher@gen-0", path, "torch-export")
    before = path.stat()
    assert export_teacher(store, "tiny-teacher@gen-0", path, "torch-export").difference == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    for other in ("zip", "text"):
        if other == "zip":
            with zipfile.ZipFile(tmp_path / other, "w") as archive:
                archive.writestr("a/extra/nst.json", "{}")
        else:
            (tmp_path / other).write_text("mine")
        with pytest.raises(NstError, match=f"{other}:.*exists.*choose another name, or remove"):
            export_teacher(store, "tiny-teacher@gen-0", tmp_path / other, "torch-export")
    with pytest.raises(NstError, match="there is no folder"):
        export_teacher(store, "tiny-teacher@gen-0", tmp_path / "no" / "a.pt2", "torch-export")

    def fails(*_):
        raise RuntimeError("an operator that is not known\nand a long trace")

    monkeypatch.setitem(exporting._FORMATS, "torch-export", (fails, exporting._run_torch_export))
    with pytest.raises(NstError, match=r"tiny-teacher@gen-0:.*torch-export: an operator"):
        export_teacher(store, "tiny-teacher@gen-0", tmp_path / "b.pt2", "torch-export")
    wrong = (exporting._write_torch_export, lambda path, pixels: exporting._run_torch_export(path, pixels) + 0.01)
    monkeypatch.setitem(exporting._FORMATS, "torch-export", wrong)
    with pytest.raises(NstError, match=r"tiny-teacher@gen-0:.*torch-export.*other logits \(by 0\.0\d+.*nothing"):
        export_teacher(store, "tiny-teacher@gen-0", tmp_path / "b.pt2", "torch-export")
    assert {one.name for one in tmp_path.iterdir()} == {"tiny.pt2", "zip", "text"}


def test_what_does_not_go_together_is_said_in_a_line(tiny_store, tmp_path, monkeypatch):
    store = tiny_store[0]

    def said(*arguments):
        result = CliRunner().invoke(app, ["export", *arguments, "--store", str(store.root)])
        assert result.exit_code
        return result.output.strip().splitlines()[-1]

    assert "remove --pool, --link and --probs" in said("tiny-teacher@gen-0", str(tmp_path / "a"), "--to", "onnx", "--probs")
    assert "expected a teacher" in said("tiny@gen-1", str(tmp_path / "a"), "--to", "torch-export")
    assert mentions(said("tiny-teacher@gen-0", str(tmp_path / "a")), "is a teacher, …; --to onnx or torch-export")
    with pytest.raises(UsageError, match="`to` caffe: expected onnx or torch-export"):
        export_teacher(store, "tiny-teacher@gen-0", tmp_path / "a", "caffe")
    for folder in (str(tmp_path), "./"):
        with pytest.raises(NstError, match=r"a file to write, found a folder.*network\.onnx"):
            export_teacher(store, "tiny-teacher@gen-0", folder, "torch-export")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UsageError, match=r"`to` onnx requires onnxscript: pip install 'nst\[onnx\]'"):
        export_teacher(store, "tiny-teacher@gen-0", tmp_path / "a", "onnx")


@pytest.mark.slow
def test_onnxruntime_gives_the_logits_and_labels_of_the_network_on_photographs(real_weights, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    store, encoded = Store(tmp_path / "store"), photographs()
    assert export_teacher(store, real_weights, tmp_path / "lite0.onnx", "onnx").difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "lite0.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    config, names = json.loads(about["preprocessing"]), json.loads(about["class_names"])
    transform = create_transform(**config | {"input_size": tuple(config["input_size"])})
    pixels = np.stack([transform(Image.open(io.BytesIO(one)).convert("RGB")).numpy() for one in encoded])
    (found,) = session.run(None, {"pixels": pixels})
    expected = logits_of(load_classifier(real_weights, store, exact=True)[0], encoded).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert found.shape == (20, len(names) == 1000 and 1000)
    one = session.run(None, {"pixels": pixels[:1]})[0]
    np.testing.assert_allclose(one, found[:1], atol=1e-4)
    assert b"site-packages" not in (tmp_path / "lite0.onnx").read_bytes()


@pytest.mark.slow
def test_networks_of_transformers_and_large_ones_are_written_as_onnx_too(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    store, vit = Store(tmp_path / "store"), write_transformer(tmp_path / "vit")
    for name in ("a.onnx", "b.onnx"):
        export_teacher(store, vit, tmp_path / name, "onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    monkeypatch.setattr(exporting, "_MAX_INLINE_BYTES", 1_000)
    written = export_teacher(store, vit, tmp_path / "vit.onnx", "onnx")
    assert written.difference < 1e-4
    assert str(tmp_path).encode() not in (tmp_path / "vit.onnx").read_bytes()
    assert {path.name for path in tmp_path.glob("vit.*")} == {"vit.onnx", "vit.onnx.data"}
    assert export_teacher(store, vit, tmp_path / "vit.onnx", "onnx").difference == written.difference
    shutil.move(tmp_path / "vit.onnx", tmp_path / "other.onnx")
    with pytest.raises(NstError, match=r"vit\.onnx\.data: exists.*choose another name, or remove"):
        export_teacher(store, vit, tmp_path / "vit.onnx", "onnx")
