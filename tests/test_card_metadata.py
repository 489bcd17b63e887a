"""The YAML of cards, read by those who read it on the Hub: huggingface_hub's card classes and `datasets`."""

import json
import time

import pytest
import yaml
from datasets import DatasetInfo, load_dataset, load_dataset_builder
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, EvalResult, ModelCard
from sealed_labels import NAMES, label_row, seal_edition, seal_generation

from nst_data.cards.card_metadata import LICENSES, front_matter, license_of
from nst_data.cards.cards import Published, dataset_card, model_card
from nst_data.cards.described import Described
from nst_data.cards.own_text import own_text
from nst_data.cards.published import public_name
from nst_data.errors import NstError
from nst_data.hub.licenses import license_at, read_front_matter, split_front_matter
from nst_data.sharing.croissant import croissant
from nst_data.store.inputs import Input
from nst_data.store.manifest import TeacherRequest
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store

HOSTILE = [
    "<script>alert(1)</script>",
    "a\n---\nb",
    "---",
    "\n---\ntags: [x]\n---\n",
    "a: b",
    "- a",
    "{a: b}",
    "!!python/object/apply:os.system ['ls']",
    "&a *a",
    "'\"",
    "\u2028\x85x",
    "no",
    "1.0",
    "null",
    "# comment",
    "%YAML 1.1",
    "\t",
    "x" * 500,
]
ON_HUB = "owner/photos@0123456789012345678901234567890123456789:default/held-out"
SCORES = {
    "test": {"top1": 0.948, "top5": 0.99, "images": 500, "source": "/home/me/photos/test", "fingerprint": "f", "nll": 0.1},
    "validation": {"top1": 0.9, "images": 50, "source": ON_HUB},
    "fgsm": {
        "top1": 0.1,
        "images": 50,
        "suite": "fgsm",
        "source": "owner/photos@0123456789012345678901234567890123456789:default/held-out",
    },
}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def rows(count, **changes):
    return [label_row(index, index, index % 3, 0.9, key=f"folder/{index}.png", **changes) for index in range(count)]


def seal_teacher(store, name="net", config='{"architecture": "resnet18"}', metrics=None, **inputs):
    inputs = {role: one if isinstance(one, Input) else Input(ref=one, digest=role) for role, one in inputs.items()}
    staging = store.find_or_stage(TeacherRequest(settings={"model": "resnet18"}, inputs=inputs), name, first_generation=0)
    (staging.build / "config.json").write_text(config)
    (staging.build / "metrics.json").write_text(json.dumps(metrics or {}))
    return staging.seal(staging.build_manifest({}, NAMES, {"parameters": 11, "steps": 7, "labeled": 30, "entries": 60}))


def written(version, card):
    (version.folder / "README.md").write_text(card)
    return str(version.folder)


@pytest.mark.parametrize("kind", ["generation", "edition"])
def test_datasets_reads_from_the_files_what_the_card_says(store, tmp_path, kind):
    version = seal_generation(store, rows(300))
    version = seal_edition(store, version, rows(200)) if kind == "edition" else version
    table = Described.from_version(version).table
    bare = load_dataset(f"{version.folder}/{table}", split="train", cache_dir=str(tmp_path / "bare"))
    folder = written(version, dataset_card(version))
    info: DatasetInfo = load_dataset_builder(folder, table, cache_dir=str(tmp_path / "cache")).info
    assert info.features == bare.features
    assert info.splits["train"].num_examples == len(bare)
    assert info.splits["train"].num_bytes == pytest.approx(bare.info.dataset_size, rel=0.02)
    assert info.download_size == sum(file.stat().st_size for file in (version.folder / table).iterdir())
    loaded = load_dataset(folder, table, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == bare.to_list()


def test_datasets_refuses_a_folder_that_has_lost_rows(store, tmp_path):
    version = seal_generation(store, rows(30))
    card = dataset_card(version).replace("num_examples: 30", "num_examples: 31")
    with pytest.raises(Exception, match="num_examples=31"):
        load_dataset(written(version, card), "pseudo_labels", cache_dir=str(tmp_path / "cache"))


def test_class_names_of_many_classes_are_left_to_the_parquet_files(store, tmp_path):
    names = [f"class {index}" for index in range(1001)]
    version = seal_generation(store, [label_row(0, 0, 0, 0.9, classes=1001)], names=names)
    card = dataset_card(version)
    assert "class 500" not in card.split("---\n")[1]
    loaded = load_dataset(written(version, card), "pseudo_labels", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == names


def test_hostile_class_names_stay_names_in_the_front_matter(store, tmp_path):
    names = sorted(HOSTILE)
    version = seal_generation(store, [label_row(0, 0, 0, 0.9, classes=len(names))], names=names)
    card = dataset_card(version)
    assert DatasetInfosDict.from_dataset_card_data(DatasetCard(card).data)["pseudo_labels"].features["label"].names == names
    loaded = load_dataset(written(version, card), "pseudo_labels", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["label"].names == names


def test_the_hubs_class_reads_the_metadata_of_a_dataset(store):
    generation = seal_generation(store, rows(3), pool=Input(ref="owner/photos@abc:default/train", digest="d", revision="abc"))
    edition = seal_edition(store, generation, rows(3), pool=generation.manifest.request.inputs.pool)
    data = DatasetCard(dataset_card(edition, Published("alice/bugs", "gen-1.1", license="CC-BY-4.0"))).data
    assert data.to_dict() | {"configs": 0, "dataset_info": 0} == {
        "license": "cc-by-4.0",
        "pretty_name": "bugs gen-1.1",
        "task_categories": ["image-classification"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["owner/photos"],
        "size_categories": ["n<1K"],
        "tags": ["nst", "noisy-student", "pseudo-labels", "self-training"],
        "configs": 0,
        "dataset_info": 0,
    }


def test_the_hubs_class_reads_the_scores_of_a_teacher(store):
    teacher = seal_teacher(store, metrics=SCORES, labeled="/labeled")
    data = ModelCard(model_card(teacher, Published("alice/net", "gen-0"))).data
    known = {"task_type": "image-classification", "task_name": "Image Classification", "dataset_type": "imagefolder"}
    known["metric_type"] = "accuracy"
    assert data.eval_results == [
        EvalResult(**known, dataset_name="test", dataset_split="test", metric_value=0.948, metric_name="top-1 accuracy"),
        EvalResult(**known, dataset_name="test", dataset_split="test", metric_value=0.99, metric_name="top-5 accuracy"),
        EvalResult(
            **known | {"dataset_type": "owner/photos"},
            dataset_name="owner/photos",
            dataset_config="default",
            dataset_split="held-out",
            dataset_revision="0123456789012345678901234567890123456789",
            metric_value=0.9,
            metric_name="top-1 accuracy",
        ),
        EvalResult(  # images that a suite has changed are no dataset of the Hub
            **known,
            dataset_name=SCORES["fgsm"]["source"],
            dataset_split="fgsm",
            metric_value=0.1,
            metric_name="top-1 accuracy",
        ),
    ]
    assert (data.model_name, data.library_name, data.pipeline_tag) == ("net", "timm", "image-classification")
    assert [result["dataset"]["split"] for result in data.to_dict()["model-index"][0]["results"]] == ["test", "held-out", "fgsm"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_results_stay_text_in_the_front_matter(store, name):
    teacher = seal_teacher(store, metrics={name: {"top1": 0.5, "images": 2, "source": name}}, labeled="/labeled")
    data = ModelCard(model_card(teacher)).data
    assert [(one.dataset_name, one.dataset_split) for one in data.eval_results] == [(public_name(name), name)]


@pytest.mark.parametrize("result", [{}, {"top1": None}, {"mfr": float("nan")}, {"ece": 0.1}])
def test_results_without_a_top1_accuracy_are_passed_over(store, result):
    card = model_card(seal_teacher(store, metrics={"odd": result, "test": {"top1": 0.5}}, labeled="/labeled"))
    assert ("odd" in card, "50.00%" in card) == (False, True)


@pytest.mark.parametrize("result", [None, 5, "x", [], {"top1": "0.5"}, {"top1": True}, {"top1": float("nan")}, {"top1": 50}])
def test_metrics_that_are_none_are_refused_in_a_line_and_shown_on_no_card(store, result):
    teacher = seal_teacher(store, metrics={"odd": result, "test": {"top1": 0.5}}, labeled="/labeled")
    with pytest.raises(NstError, match=r"metrics\.json:.*, found odd:.*; delete it.*evaluate again$"):
        Metrics.read(teacher.folder)
    assert "odd" not in model_card(teacher)


def test_a_network_in_transformers_format_belongs_to_transformers(store):
    teacher = seal_teacher(store, config='{"model_type": "vit"}', labeled="/labeled")
    card = model_card(teacher)
    assert ModelCard(card).data.library_name == "transformers"
    assert "timm.create_model" not in card


@pytest.mark.parametrize("config", ["", "{", "[]", "5"])
def test_a_config_that_is_none_still_has_a_card(store, config):
    assert ModelCard(model_card(seal_teacher(store, config=config, labeled="/labeled"))).data.library_name == "timm"


def test_the_base_model_is_the_network_that_a_teacher_started_from_and_not_the_one_that_labeled(store):
    labels = Input(ref="bugs@gen-1.1", digest="edition")
    student = seal_teacher(store, labeled="/labeled", edition=labels)
    links = {"edition": "alice/bugs@gen-1.1", "teacher": "alice/net@gen-0", "initial_weights": "alice/net@gen-0"}
    data = ModelCard(model_card(student, Published("alice/net", "gen-1", links))).data
    assert (data.datasets, data.base_model) == (["alice/bugs"], None)
    started = seal_teacher(store, "other", labeled="/labeled", edition=labels, initial_weights="net@gen-0")
    data = ModelCard(model_card(started, Published("alice/other", "gen-1", links))).data
    assert (data.base_model, data.base_model_relation) == (["alice/net"], "finetune")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("CC BY 4.0", {"license": "cc-by-4.0"}),
        ("OpenRAIL++", {"license": "openrail++"}),
        (" apache-2.0\n", {"license": "apache-2.0"}),
        ("Research only", {"license": "other", "license_name": "research-only", "license_details": "Research only"}),
        ("許可", {"license": "other", "license_name": "custom", "license_details": "許可"}),
        (
            "https://x.org/l",
            {"license": "other", "license_name": "https-x.org-l", "license_link": "https://x.org/l", "license_details": "https://x.org/l"},
        ),
    ],
)
def test_a_license_is_one_of_the_hubs_or_another_with_a_name(given, expected):
    assert license_of(Published("a/b", "gen-1", license=given), {"license": "gpl", "license_link": "x"}) == expected
    assert expected["license"] in LICENSES | {"other"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("license: CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("license: my own", {"license": "other", "license_name": "my-own", "license_details": "my own"}),
        ("license: other\nlicense_name: mine", {"license": "other", "license_name": "mine"}),
    ],
)
def test_a_license_that_the_user_wrote_into_the_card_of_a_folder_is_published_as_the_hub_takes_it(store, line, expected):
    version = seal_generation(store, rows(3))
    written(version, dataset_card(version).replace("---\n", f"---\n{line}\n", 1))
    published = Published("a/b", "gen-1")
    data = DatasetCard(dataset_card(version, published)).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected
    of_catalogs = json.loads(croissant(Described.from_version(version), published))["license"]
    assert of_catalogs == expected.get("license_name", expected["license"])
    accepted = "---\nlicense: of-a-later-hub\n---\n"  # what stands in the repository the Hub has taken
    data = DatasetCard(dataset_card(version, Published("a/b", "gen-1", earlier_card=accepted))).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == {"license": "of-a-later-hub"}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_of_the_user_stay_words_and_are_taken_over_by_the_next_push(store, words):
    version = seal_generation(store, rows(3))
    first = dataset_card(version, Published("a/b", "gen-1", license=words, pool_source=words))
    second = dataset_card(version, Published("a/b", "gen-1", earlier_card=first))
    assert DatasetCard(second).data.to_dict() == DatasetCard(first).data.to_dict()
    assert DatasetCard(second).data.to_dict()["nst"] == {"pool_source": words}
    assert second.split("\n---\n", 1)[1] == first.split("\n---\n", 1)[1]


def test_what_the_user_gives_wins_over_the_earlier_card(store):
    version = seal_generation(store, rows(3))
    first = dataset_card(version, Published("a/b", "gen-1", license="mit", pool_source="mine"))
    second = dataset_card(version, Published("a/b", "gen-1", license="my terms", pool_source="yours", earlier_card=first))
    data = DatasetCard(second).data.to_dict()
    assert (data["license"], data["license_name"], data["nst"]) == ("other", "my-terms", {"pool_source": "yours"})


@pytest.mark.parametrize(
    "card",
    [
        "",
        "no front",
        "---\n- a\n---\n",
        "---\na: [\n---\n",
        "---\n!!python/object/apply:os.getcwd []\n---\n",
        "---\na: &a [*a]\n---\n",
        "---\n---\n",
    ],
)
def test_front_matter_that_is_none_is_passed_over(store, card):
    assert read_front_matter(card).get("license") is None
    assert DatasetCard(dataset_card(seal_generation(store, rows(1)), Published("a/b", "gen-1", earlier_card=card))).data.license is None


@pytest.mark.parametrize(
    ("line", "license"),
    [
        ("license: mit", "mit"),
        ("license: [cc-by-nc-4.0, mit]", "cc-by-nc-4.0 + mit"),
        ("license: other\nlicense_name: my-terms", "other (my-terms)"),
        ("license: 5", None),
        ("pretty_name: x", None),
    ],
)
def test_the_license_of_a_repository_is_that_of_its_card(monkeypatch, tmp_path, line, license):
    (tmp_path / "README.md").write_text(f"---\n{line}\n---\n")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "README.md"))
    assert license_at("owner/name", "c" * 40, "dataset") == license


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("\r\n---\r\na: 1\r\n---\r\n# body", ("a: 1", "# body")),
        ("---\n\n\na: 1\n\n---  \nbody\n---\n", ("a: 1\n", "body\n---\n")),
        ("---\n---\nbody", ("", "body")),
        ("---\na: 1\n---", ("a: 1", "")),
        ("---\na: |\n  ---\n----\n--- b\n", ("", "---\na: |\n  ---\n----\n--- b\n")),
        ("text\n---\na: 1\n---\n", ("", "text\n---\na: 1\n---\n")),
    ],
)
def test_front_matter_is_between_the_first_two_lines_of_dashes(card, expected):
    assert split_front_matter(card) == expected


@pytest.mark.parametrize(
    "card", ["---" + "\n" * 100_000 + "x", "---\n" + "a\n\n" * 100_000 + "x", " " * 100_000 + "x", "---\n" + "\n--- " * 50_000]
)
def test_a_long_card_is_gone_through_once_whatever_a_stranger_wrote(card):
    since = time.monotonic()
    read_front_matter(card)
    own_text(card)
    assert time.monotonic() - since < 2  # a hundred times as long as it takes


@pytest.mark.parametrize("value", [5, None, {"a": "b"}, ["mit", 5], True])
def test_a_license_of_an_earlier_card_that_is_none_is_passed_over(value):
    assert license_of(None, {"license": value}) == {}


@pytest.mark.parametrize("value", HOSTILE)
def test_yaml_gives_back_what_it_was_given(value):
    content = {"key": value, value: [value, {"deep": value}]}
    text = front_matter(content)
    assert yaml.safe_load(text.split("\n---\n")[0]) == content
    assert read_front_matter(text + "\n# body\n---\n") == content


def test_an_anonymous_table_is_described_only_as_it_is_published(store):
    version = seal_generation(store, rows(3))
    data = DatasetCard(dataset_card(version, Published("a/b", "gen-1", anonymous=True))).data
    assert "dataset_info" not in data
