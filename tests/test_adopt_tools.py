"""Labels of images that other tools keep: class folders, WebDataset, FiftyOne, Label Studio."""

import base64
import io
import json
import shutil
import zlib

import numpy as np
import pytest
from labels import table_rows
from pictures import png, write_tar
from test_adopt_tables import FILES, NAMES, PROBS, RecordingProgress, expected, near, read, write_json
from wording import mentions

from nst_data.adoption import adopt
from nst_data.errors import NstError, UsageError
from nst_data.label_files import label_studio
from nst_data.label_files.choosing import ColumnOptions
from nst_data.label_files.opening import labels_of_source
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.key_column import KeyColumn
from nst_data.tables.label_reader import create_label_reader

LABELS = PROBS.argmax(axis=1)
IMAGES = [png(number % 4, number) for number in range(len(FILES))]


def of_images(source, names=None, **requested):
    """{key: {class: probability}} of images that have their labels beside them."""
    adopted = labels_of_source(source, ColumnOptions(class_names=names, **requested), with_key=False)
    reader = create_label_reader(adopted.source, adopted.columns, names, None, 0.0, Progress())
    probs = np.concatenate(list(reader.probabilities()))
    order = KeyColumn(adopted.source, adopted.key).match_rows(source) if adopted.key else None
    keys = [source.key(row) for row in (order.in_pool.tolist() if order else range(len(source)))]
    rows = probs[order.in_table] if order else probs
    return {key: dict(zip(reader.class_names, row.tolist(), strict=True)) for key, row in zip(keys, rows, strict=True)}


def hard(label, names=NAMES):
    return {name: float(name == label) for name in names}


def test_a_folder_per_class_gives_hard_labels_to_its_images_or_to_a_pool(tmp_path):
    (tmp_path / "pool").mkdir()
    for number, content in enumerate(IMAGES):
        (tmp_path / "pool" / f"{number}.png").write_bytes(content)
        if number < 4:
            path = tmp_path / "sorted" / NAMES[LABELS[number]] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    sorted_images = open_source(tmp_path / "sorted")
    classes = ["ant", "bee", "dog"]
    unlabeled = labels_of_source(open_source(tmp_path / "sorted", labeled=True), ColumnOptions(), with_key=False).images
    assert unlabeled.fingerprint == sorted_images.fingerprint
    assert of_images(sorted_images) == {sorted_images.key(row): hard(sorted_images.key(row).split("/")[0], classes) for row in range(4)}
    version = adopt(Store(tmp_path / "store"), "bugs", str(tmp_path / "sorted"), pool=open_source(tmp_path / "pool"), progress=Progress())
    assert (version.manifest.counts.labeled, version.manifest.counts.unlabeled) == (4, 1)
    assert version.manifest.class_names == classes


def samples(*members, image="png"):
    """WebDataset's samples of an image and other members each, by suffix."""
    return [
        (f"{number:04d}.{suffix}", content)
        for number, more in enumerate(members)
        for suffix, content in {image: IMAGES[number], **more}.items()
    ]


def test_classes_in_tar_files_are_the_labels_of_their_images(tmp_path):
    write_tar(tmp_path / "names.tar", samples(*({"cls": NAMES[label].encode()} for label in LABELS)))
    found = of_images(open_source(tmp_path / "names.tar"))
    assert list(found.values()) == [hard(NAMES[label], ["ant", "bee", "dog"]) for label in LABELS]
    write_tar(tmp_path / "numbers.tar", samples(*({"cls": str(label).encode()} for label in LABELS)))
    found = of_images(open_source(tmp_path / "numbers.tar"), NAMES)
    assert found == {f"numbers.tar:{row:04d}.png": hard(NAMES[label]) for row, label in enumerate(LABELS)}
    with pytest.raises(UsageError, match=r"numbers\.tar:.*`label` has class numbers.*`class_names` FILE"):
        of_images(open_source(tmp_path / "numbers.tar"))


def test_json_members_in_tar_files_are_the_labels_of_their_images(tmp_path):
    documents = [
        {"label": NAMES[label], "confidence": float(row.max()), "key": "elsewhere", "probs": dict(zip(NAMES, row.tolist(), strict=True))}
        for label, row in zip(LABELS, PROBS, strict=True)
    ]
    (tmp_path / "shards").mkdir()
    as_json = [{"cls": b"0", "json": json.dumps(one).encode()} for one in documents]
    members = samples(*as_json)
    write_tar(tmp_path / "shards" / "0.tar", members[:6])
    write_tar(tmp_path / "shards" / "1.tar", [*members[6:], ("notes.json", b"{}")])
    found = of_images(open_source(tmp_path / "shards"))
    assert list(found) == [f"{int(row > 1)}.tar:{row:04d}.png" for row in range(5)]
    assert list(found.values()) == list(near(expected()).values())
    by_confidence = of_images(open_source(tmp_path / "shards"), NAMES, probs="confidence")
    assert list(by_confidence.values()) == list(near(expected(1)).values())


def test_json_members_without_labels_leave_those_to_the_classes(tmp_path):
    write_tar(tmp_path / "a.tar", samples(*({"cls": NAMES[label].encode(), "json": b'{"caption": "x"}'} for label in LABELS)))
    assert list(of_images(open_source(tmp_path / "a.tar"), NAMES).values()) == [hard(NAMES[label]) for label in LABELS]


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"[1]", "0000.json: expected a JSON object, found list"), (b"{", r"a\.tar: 0000\.json:.*JSON object, found other text")],
)
def test_a_json_member_that_is_no_object_is_named(tmp_path, content, line):
    write_tar(tmp_path / "a.tar", samples({"json": content}, {"json": b'{"label": "ant"}'}))
    with pytest.raises(NstError, match=line):
        of_images(open_source(tmp_path / "a.tar"))


def test_fiftyones_image_classification_dataset_is_taken(tmp_path):
    keys = [name.removesuffix(".png") for name in FILES]
    plain = dict(zip(keys, LABELS.tolist(), strict=True))
    found = read(write_json(tmp_path / "labels.json", {"classes": NAMES, "labels": plain}))
    assert found == {key: hard(NAMES[label]) for key, label in zip(keys, LABELS, strict=True)}
    sure = {
        key: {"label": NAMES[label], "confidence": float(row.max()), "attributes": {"size": 3}}
        for key, label, row in zip(keys, LABELS, PROBS, strict=True)
    }
    found = read(write_json(tmp_path / "labels.json", {"classes": None, "labels": {**sure, "c/5": None}}), NAMES)
    assert list(found.values()) == list(near(expected(1)).values())


def classification(label, row, **array):
    """As FiftyOne's samples.json has one."""
    return {"_id": {"$oid": "5f"}, "_cls": "Classification", "tags": [], "label": NAMES[label], "confidence": float(row.max()), **array}


def compressed(values):
    file = io.BytesIO()
    np.save(file, np.asarray(values, np.float32), allow_pickle=False)
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


def test_fiftyones_dataset_is_taken_with_confidences_or_logits(tmp_path):
    logits = np.log(PROBS + 1e-30) - 2
    samples = [
        {
            "filepath": f"data/{key}",
            "tags": [],
            "metadata": {"_cls": "ImageMetadata", "width": 8, "height": 8},
            "predictions": classification(label, row, logits={"$binary": {"base64": compressed(values), "subType": "00"}}),
        }
        for key, label, row, values in zip(FILES, LABELS, PROBS, logits, strict=True)
    ]
    samples.append({"filepath": "data/c/5.png", "predictions": None})
    file = write_json(tmp_path / "samples.json", {"samples": samples})
    assert read(file, NAMES) == {f"data/{key}": one for key, one in near(expected(1)).items()}
    assert read(file, NAMES, logits=True) == {f"data/{key}": one for key, one in near(expected()).items()}
    for sample in samples[:5]:
        sample["ground_truth"] = classification(0, np.ones(1), logits=None)
        sample["predictions"]["logits"] = compressed([1, 2, 3, 4])
    file = write_json(tmp_path / "samples.json", {"samples": samples})
    with pytest.raises(UsageError, match=r"samples\.json:.*, found predictions, ground_truth.*`label_column`"):
        read(file, NAMES)
    assert read(file, NAMES, label_column="ground_truth")["data/4.png"] == hard("ant")
    assert max(read(file, NAMES, label_column="predictions", logits=True)["data/4.png"].items(), key=lambda one: one[1])[0] == "dog"
    with pytest.raises(UsageError, match="`ground_truth` has no logits; remove `logits`"):
        read(file, NAMES, label_column="ground_truth", logits=True)
    samples[0]["predictions"]["logits"] = "gASVCQAAAAAAAACMBWFsZXJ0lC4="
    file = write_json(tmp_path / "samples.json", {"samples": samples})
    with pytest.raises(NstError, match=r"samples\.json: row 0:.*logits as a list.*FiftyOne"):
        read(file, NAMES, label_column="predictions", logits=True)


def chosen(*names, **more):
    return {"result": [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": list(names)}}], **more}


def task(key, number=0, **results):
    return {"id": number, "data": {"image": f"/data/local-files/?d=photos/{key}"}, "meta": {}, **results}


def test_label_studios_predictions_and_answers_are_taken(tmp_path):
    tasks = [
        task(key, predictions=[chosen(NAMES[label], score=float(row.max()), model_version="v1")])
        for key, label, row in zip(FILES, LABELS, PROBS, strict=True)
    ]
    found = read(write_json(tmp_path / "tasks.json", tasks), NAMES)
    assert found == {f"photos/{key}": one for key, one in near(expected(1)).items()}
    tasks[0]["annotations"] = [chosen("cat", completed_by=1), chosen("cat", completed_by=2), chosen("ant", was_cancelled=True)]
    file = write_json(tmp_path / "tasks.json", tasks)
    with pytest.raises(UsageError, match=r"tasks\.json:.*, found annotations, predictions.*`label_column`"):
        read(file)
    assert read(file, NAMES, label_column="annotations") == {"photos/a/0.png": hard("cat")}
    tasks[1]["annotations"] = [chosen("cat"), chosen("ant")]
    with pytest.raises(NstError, match=r"task 0 \('photos/a/1\.png'\):.*one answer, found 'cat', 'ant'"):
        read(write_json(tmp_path / "tasks.json", tasks), label_column="annotations")
    with pytest.raises(NstError, match=r"task 7.*one class, found 'cat', 'ant'"):
        read(write_json(tmp_path / "tasks.json", [task("x", 7, annotations=[chosen("cat", "ant")])]))


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/data/local-files/?d=out/images/a%20b.png", "out/images/a b.png"),
        ("/data/upload/3/0a1b2c3d-cat.jpg", "/data/upload/3/cat.jpg"),
        ("s3://bucket/photos/cat.jpg", "/photos/cat.jpg"),
        ("https://example.com/photos/cat%201.jpg?size=3", "/photos/cat 1.jpg"),
        ("photos/cat 100%.jpg", "photos/cat 100%.jpg"),
    ],
)
def test_addresses_in_tasks_become_paths(tmp_path, address, path):
    file = write_json(tmp_path / "tasks.json", [{"data": {"image": address}, "annotations": [chosen("ant")]}])
    assert list(read(file, NAMES)) == [path]
    short = write_json(tmp_path / "min.json", [{"id": 1, "image": address, "choice": "ant", "annotator": 1}])
    assert list(read(short, NAMES)) == [path]


def test_images_without_an_answer_yet_are_left_out_and_counted(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, content in enumerate(IMAGES):
        (tmp_path / "photos" / f"{number}.png").write_bytes(content)
    tasks = [task(f"{number}.png", annotations=[chosen(NAMES[number])] if number < 3 else []) for number in range(5)]
    said, file = RecordingProgress(), write_json(tmp_path / "tasks.json", tasks)
    version = adopt(Store(tmp_path / "store"), "bugs", str(file), pool=open_source(tmp_path / "photos"), progress=said)
    assert any(mentions(line, f"{file}: 2 images … no label … left out") for line in said.lines)
    assert (version.manifest.counts.labeled, version.manifest.counts.unlabeled) == (3, 2)


def test_class_folders_whose_file_names_repeat_find_their_images_in_the_same_tree_and_in_what_they_were_sorted_from(tmp_path):
    for name in ("ant/0.png", "bee/0.png", "bee/sub/0.png"):
        (tmp_path / "sorted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sorted" / name).write_bytes(png(1, len(name)))
    store = Store(tmp_path / "store")
    same = adopt(store, "same", str(tmp_path / "sorted"), pool=open_source(tmp_path / "sorted"), progress=Progress())
    names = same.manifest.class_names
    assert {row["key"]: names[row["label"]] for row in table_rows(same)} == {"ant/0.png": "ant", "bee/0.png": "bee", "bee/sub/0.png": "bee"}
    shutil.rmtree(tmp_path / "sorted" / "ant")
    (tmp_path / "sorted" / "ant").mkdir()
    (tmp_path / "sorted" / "ant" / "1.png").write_bytes(png(2, 7))
    for name in ("0.png", "1.png", "sub/0.png"):
        (tmp_path / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pool" / name).write_bytes(png(3, len(name)))
    flat = adopt(store, "flat", str(tmp_path / "sorted"), pool=open_source(tmp_path / "pool"), progress=Progress())
    assert {row["key"]: names[row["label"]] for row in table_rows(flat)} == {"1.png": "ant", "0.png": "bee", "sub/0.png": "bee"}


def test_keys_of_buckets_are_taken_as_they_are():
    assert label_studio.path_of("s3://bucket/a/img#1 100%.png") == "/a/img#1 100%.png"
    assert label_studio.path_of("https://host/a/img%231.png") == "/a/img#1.png"
