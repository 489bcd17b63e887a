import json
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, write_pool
from labels import RUN, SETTINGS, table_rows, write_teacher
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.classifiers.lineage import teacher_entries
from nst_train.classifiers.teachers import load_classifier, load_teacher
from nst_train.labeling.label import label
from nst_train.settings import LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

NAMES = ["ant", "bee", "cat"]


def write_transformer(folder, names=NAMES, seed=0, **processing):
    """A ViT with random weights in transformers' format; its name for `--teacher`."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=24,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    network = ViTForImageClassification(config)
    with torch.no_grad():
        network.classifier.weight.normal_(0, 1)
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 24}, **processing).save_pretrained(folder)
    return f"local-dir:{folder}"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    return write_pool(tmp_path / "pool", 3, 3)


def label_pool(store, pool, teacher, corpus="bugs", **settings):
    return label(store, corpus, teacher, open_source(str(pool)), LabelSettings(**SETTINGS.model_dump() | settings), run=RUN)


def probs(version):
    return np.array([row["probs"] for row in table_rows(version)])


def test_a_teacher_in_transformers_format_labels_as_its_own_pipeline_does(store, pool, tmp_path):
    name = write_transformer(tmp_path / "vit", image_mean=[0.2, 0.5, 0.7], image_std=[0.3, 0.2, 0.5])
    version = label_pool(store, pool, name)
    reference = pipeline("image-classification", model=str(tmp_path / "vit"), function_to_apply="softmax", top_k=3)
    for row in table_rows(version):
        scores = {one["label"]: one["score"] for one in reference(Image.open(pool / row["key"]))}
        assert row["probs"] == pytest.approx([scores[class_name] for class_name in NAMES], abs=2e-3)
        assert row["confidence"] == pytest.approx(max(scores.values()), abs=1e-5)
    assert version.manifest.class_names == NAMES


def test_a_teacher_in_transformers_format_labels_as_processor_and_network_do_by_hand(store, pool, tmp_path):
    name = write_transformer(tmp_path / "vit")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    network = AutoModelForImageClassification.from_pretrained(tmp_path / "vit").eval()
    for row in table_rows(label_pool(store, pool, name)):
        with torch.no_grad():
            logits = network(**processor(Image.open(pool / row["key"]).convert("RGB"), return_tensors="pt")).logits
        assert row["probs"] == pytest.approx(logits.softmax(dim=1)[0].tolist(), abs=1e-3)


def test_a_teacher_in_timms_format_names_its_classes_and_its_weights(store, pool, tmp_path):
    name = write_teacher(tmp_path / "teacher", NAMES)
    version = label_pool(store, pool, name)
    entry = version.manifest.request.inputs.teacher
    assert version.manifest.class_names == NAMES
    assert (entry.ref, entry.revision) == (name, None)
    again, _ = load_teacher([name], store)
    assert again.class_names == NAMES
    assert len(entry.weights_sha256) == 64
    assert version.manifest.counts.teacher_parameters == again.parameters


def test_a_copied_folder_is_the_same_teacher_and_other_weights_or_classes_are_not(store, tmp_path):
    names = {"first": write_teacher(tmp_path / "first", NAMES)}
    for other in ("copied", "weights", "classes", "crop"):
        names[other] = f"local-dir:{shutil.copytree(tmp_path / 'first', tmp_path / other)}"
    weights = load_file(tmp_path / "weights" / "model.safetensors")
    weights[next(iter(weights))] += 1
    save_file(weights, tmp_path / "weights" / "model.safetensors", {"format": "pt"})
    for other, (old, new) in {"classes": ('"ant"', '"wasp"'), "crop": ('"crop_pct": 1.0', '"crop_pct": 0.9')}.items():
        config = tmp_path / other / "config.json"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    digests = {which: load_classifier(name, store)[1].digest for which, name in names.items()}
    assert digests["copied"] == digests["first"]
    assert len(set(digests.values())) == 4


@pytest.mark.parametrize("processing", [{"image_mean": [0.1] * 3}, {"resample": 0}])
def test_another_image_processor_is_another_teacher(store, tmp_path, processing):
    first, second = write_transformer(tmp_path / "first"), write_transformer(tmp_path / "second", **processing)
    digests = [load_classifier(name, store)[1] for name in (first, second)]
    assert digests[0].weights_sha256 == digests[1].weights_sha256
    assert digests[0].digest != digests[1].digest


def test_the_same_weights_with_other_arguments_are_another_teacher(store, tmp_path):
    first, second = (write_transformer(tmp_path / name) for name in ("first", "second"))
    config = tmp_path / "second" / "config.json"
    assert '"hidden_act": "gelu"' in config.read_text()
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    digests = [load_classifier(name, store)[1] for name in (first, second)]
    assert digests[0].weights_sha256 == digests[1].weights_sha256
    assert digests[0].digest != digests[1].digest


def test_a_copied_folder_in_transformers_format_is_the_same_teacher(store, tmp_path):
    first = write_transformer(tmp_path / "first")
    copied = f"local-dir:{shutil.copytree(tmp_path / 'first', tmp_path / 'copied')}"
    assert load_classifier(first, store)[1].digest == load_classifier(copied, store)[1].digest


def test_classes_that_share_a_name_are_told_apart(store, pool, tmp_path):
    version = label_pool(store, pool, write_transformer(tmp_path / "vit", ["crane", "bee", "crane"]))
    assert version.manifest.class_names == ["crane (0)", "bee", "crane (2)"]


def test_a_folder_with_pickled_weights_alone_is_refused(store, tmp_path):
    name = write_teacher(tmp_path / "teacher", NAMES)
    weights = tmp_path / "teacher" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "teacher" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UsageError, match=r"^local-dir:.*: expected.*config\.json and model\.safetensors"):
        load_classifier(name, store)


def test_pickled_weights_are_not_read_beside_safetensors_of_something_else(store, tmp_path):
    name = write_teacher(tmp_path / "teacher", NAMES)
    weights = tmp_path / "teacher" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "teacher" / "pytorch_model.bin")
    weights.rename(tmp_path / "teacher" / "optimizer.safetensors")
    with pytest.raises(NstError, match=r"model.safetensors"):
        load_classifier(name, store)


def test_a_folder_without_what_a_classifier_needs_is_one_error(store, tmp_path):
    name = write_transformer(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(NstError, match=r"vit: preprocessor_config\.json is missing.*; save the image processor"):
        load_classifier(name, store)
    (tmp_path / "vit" / "config.json").write_text("{")
    with pytest.raises(NstError, match=r"vit: not.*config\.json \(.+\)"):
        load_classifier(name, store)


def test_cut_weights_are_one_error(store, tmp_path):
    name = write_teacher(tmp_path / "teacher", NAMES)
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(NstError, match=r"teacher:.*trained weights.*failed \(.+\)"):
        load_classifier(name, store)


def test_weights_that_lack_a_layer_are_one_error(store, tmp_path):
    name = write_transformer(tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "classifier" not in key}, file, {"format": "pt"})
    with pytest.raises(NstError, match=r"missing 2 tensors \(classifier\.bias, classifier\.weight\)"):
        load_classifier(name, store)


def test_an_ensemble_is_the_mean_of_its_members_probabilities_by_class_name(store, pool, tmp_path):
    turned = ["cat", "ant", "bee"]
    names = [write_teacher(tmp_path / "first", NAMES, 1), write_teacher(tmp_path / "second", turned, 2, 32)]
    names.append(write_transformer(tmp_path / "vit"))
    version = label_pool(store, pool, names)
    alone = [probs(label_pool(store, pool, name, f"alone-{number}")) for number, name in enumerate(names)]
    alone[1] = alone[1][:, [turned.index(class_name) for class_name in NAMES]]
    np.testing.assert_allclose(probs(version), np.mean(alone, axis=0), atol=2e-3)
    assert version.manifest.class_names == NAMES
    inputs = version.manifest.request.inputs
    assert [entry.ref for entry in inputs.teachers.values()] == names
    assert inputs.teacher is None
    assert len({entry.weights_sha256 for entry in inputs.teachers.values()}) == 3
    card = (version.folder / "README.md").read_text()
    assert all(f"| teacher\\_{number} |" in card for number in (1, 2, 3))


def test_a_temperature_divides_the_log_of_an_ensembles_mean(store, pool, tmp_path):
    names = [write_teacher(tmp_path / str(seed), NAMES, seed) for seed in (1, 2)]
    mean = probs(label_pool(store, pool, names))
    softened = np.exp(np.log(mean) / 3)
    expected = softened / softened.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs(label_pool(store, pool, names, temperature=3.0)), expected, atol=2e-3)


def test_an_ensemble_of_other_classes_is_refused_and_leaves_nothing(store, pool, tmp_path):
    names = [write_teacher(tmp_path / "first", NAMES), write_teacher(tmp_path / "second", ["ant", "bee", "dog"])]
    with pytest.raises(
        NstError, match=r"teacher 2.*3 classes \(ant, bee, cat\), found 3 \(ant, bee, dog\).*label_names.*id2label.*config\.json"
    ):
        label_pool(store, pool, names)
    assert store.unfinished() == []


def test_a_student_is_the_next_teacher(tiny_store):
    store, data, pool = tiny_store
    edition, source = store.open("tiny@gen-1.1"), open_source(str(pool))
    settings = TrainSettings(**TINY | {"ratio": 2})
    student = train(
        store, "next-teacher", open_source(str(data), labeled=True), settings, pseudo=edition, pool=source, run=RunSettings(workers=0)
    )
    version = label(store, "next", student.ref, source, SETTINGS, run=RUN)
    assert version.manifest.request.inputs.teacher.digest == student.manifest.digest
    folder, _ = load_classifier(f"local-dir:{student.folder}", store)
    own, _ = load_classifier(student.ref, store)
    assert folder.class_names == own.class_names == ["ant", "bee", "cat"]
    assert folder.preprocessing == own.preprocessing


def test_a_teacher_of_the_store_is_named_in_the_lineage_without_being_loaded(tiny_store, tmp_path):
    store, _, _ = tiny_store
    entries = teacher_entries(["tiny-teacher"], store)
    assert entries == load_teacher(["tiny-teacher"], store)[1]
    assert teacher_entries(["tiny-teacher", write_teacher(tmp_path / "teacher", NAMES)], store) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet500", "did you mean resnet50"),
        ("nothing-like-it-at-all", r"see timm.list_models\(\)"),
        ("a/b/c", r"a/b/c:.*OWNER/NAME\[@REVISION\].*local-dir:a/b/c"),
        ("local-dir:nowhere", "expected a folder with config.json and model.safetensors"),
        ("tiny-teacher@gen-7", "expected a teacher in the store"),
        ("tiny@gen-1", r"tiny@gen-1: expected a teacher.*found a generation; choose .*tiny-teacher@gen-0"),
    ],
)
def test_a_wrong_name_says_what_is_expected(tiny_store, name, says):
    with pytest.raises(UsageError, match=says):
        load_classifier(name, tiny_store[0])


def test_a_timm_name_without_published_weights_is_refused(store):
    with pytest.raises(NstError, match=r"vit_base_patch16_18x2_224:.*no weights.*timm\.list_models\(pretrained=True\)"):
        load_classifier("vit_base_patch16_18x2_224", store)


def test_a_classifier_without_class_names_numbers_them(store, tmp_path):
    name = write_teacher(tmp_path / "teacher", NAMES)
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    for place in (config, config["pretrained_cfg"]):
        place.pop("label_names", None)
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config))
    assert load_classifier(name, store)[0].class_names == ["0", "1", "2"]
