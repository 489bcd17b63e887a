import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from sealed_labels import COUNTS, label_row, seal_edition, seal_generation

from nst_data.cards.cards import Published, dataset_card, escape_markdown, model_card, write_dataset_card, write_model_card
from nst_data.cards.described import Described
from nst_data.cards.own_text import BEGIN, END
from nst_data.selection.selection import REASONS
from nst_data.sources import open_source
from nst_data.store.counts import TeacherCounts, describe_reason
from nst_data.store.inputs import Input
from nst_data.store.manifest import EditionRequest, GenerationRequest, TeacherRequest, create_manifest
from nst_data.store.store import Store
from nst_train.evaluation.evaluate import measure_and_record

HOSTILE = [
    "<script>alert(1)</script>",
    "[x](http://y)",
    "![x](http://y/z.png)",
    "<http://y>",
    "`code`",
    "``",
    "a|b",
    "a\\|b",
    "two\nlines\r\n\n# of text",
    "# heading",
    "- item",
    "1. item",
    "1) item",
    "> quote",
    "---",
    "*bold* _it_ ~~no~~",
    "jack-o'-lantern",
    'a "quoted" name',
    "R&D &amp; more",
    "{{ 7 * 7 }}",
    "</td></table>",
    "tab\tand   spaces",
    BEGIN,
    END,
]


class Text(HTMLParser):
    """What a reader sees of HTML, and the tags in it."""

    def __init__(self, html):
        super().__init__()
        self.seen, self.tags = "", []
        self.feed(html)

    def handle_data(self, data):
        self.seen += data

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def split(card):
    """The front matter's content, and the HTML of the rest."""
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), MarkdownIt("commonmark").enable("table").render(body)


def rows_of(html, heading):
    """The cells under a heading's table, as text, and the tags inside them."""
    table = html.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0].partition("<tbody>")[2]
    cells = [[Text(cell.partition("</td>")[0]) for cell in row.split("<td")[1:]] for row in table.split("<tr>")[1:]]
    return [[cell.seen.partition(">")[2] for cell in row] for row in cells], {tag for row in cells for cell in row for tag in cell.tags}


def request(kind, **settings):
    kinds = {"generation": GenerationRequest, "edition": EditionRequest, "teacher": TeacherRequest}
    return kinds[kind](settings=settings, inputs={"pool": Input(ref="/data/<b>|x`", digest="0123456789abcdef")})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def generation_card(store, names, labeled=3):
    staging = store.find_or_stage(request("generation", batch_size=8), "flowers")
    counts = COUNTS["generation"] | {"pool": labeled, "labeled": labeled, "per_class": dict.fromkeys(names, 1234)}
    write_dataset_card(staging, staging.build_manifest({}, names, counts))
    return (staging.build / "README.md").read_text()


def edition_card(store, names, unique=3):
    staging = store.find_or_stage(request("edition", min_confidence=0.3), "flowers", generation=1)
    one = {"labeled": 1, "unique": 1, "copies": 1}
    counts = COUNTS["edition"] | {
        "labeled": 9,
        "dropped": {"over_quota": 2},
        "unique": unique,
        "copies": 4,
        "classes_without_images": names,
    }
    write_dataset_card(staging, staging.build_manifest({}, names, counts | {"per_class": dict.fromkeys(names, one)}))
    return (staging.build / "README.md").read_text()


def written_model_card(folder, names, metrics=None):
    counts = TeacherCounts(parameters=12345, steps=10)
    folder = folder / "net" / "gen-0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics or {}))
    write_model_card(
        Described(folder, folder, create_manifest("net", "gen-0", request("teacher", model="<i>|`x`"), {}, names, counts, 0, {}))
    )
    return (folder / "README.md").read_text()


def in_one_line(name):
    return " ".join(name.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_shows_as_it_is_and_never_as_markup(name):
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(escape_markdown(name))
    assert Text(html).tags == ["p"]
    assert Text(html).seen.rstrip("\n") == in_one_line(name)


def test_class_names_stand_as_text_in_the_card_of_a_generation(store):
    _, html = split(generation_card(store, HOSTILE))
    assert rows_of(html, "Labels per class") == ([[in_one_line(name), "1,234"] for name in HOSTILE], set())


def test_class_names_stand_as_text_in_the_card_of_an_edition(store):
    _, html = split(edition_card(store, HOSTILE))
    assert rows_of(html, "Images per class") == ([[in_one_line(name), "1", "1", "1"] for name in HOSTILE], set())
    assert f"classes without any image: {', '.join(map(in_one_line, HOSTILE))}\n" in Text(html).seen


def test_class_names_stand_as_text_in_the_card_of_a_teacher(tmp_path):
    _, html = split(written_model_card(tmp_path, HOSTILE))
    classes = Text(html.partition("<h2>Classes</h2>")[2].partition("</ol>")[0])
    assert classes.tags == ["ol", *["li"] * len(HOSTILE)]
    assert classes.seen.split("\n")[2:-1] == [in_one_line(name) for name in HOSTILE]


def test_paths_and_settings_stand_as_text_in_a_card(tmp_path):
    _, html = split(written_model_card(tmp_path, ["ant", "bee"]))
    assert rows_of(html, "Made from") == ([["pool", "<b>|x`", "0123456789ab"]], {"code"})
    assert rows_of(html, "Settings") == ([["model", "<i>|`x`"]], set())


def test_the_front_matter_of_a_generation_names_its_tables(store):
    front, _ = split(generation_card(store, ["ant", "bee"]))
    assert {table.pop("description").partition(" ")[0] for table in front["configs"]} == {"flowers@gen-1"}
    assert front["configs"] == [
        {
            "config_name": "pseudo_labels",
            "data_files": [{"split": "train", "path": "pseudo_labels/train-*.parquet"}],
            "default": True,
        },
        {"config_name": "errors", "data_files": [{"split": "train", "path": "errors/train-*.parquet"}]},
    ]


def test_the_front_matter_of_an_edition_names_its_table(store):
    front, html = split(edition_card(store, ["ant", "bee"]))
    assert [table["config_name"] for table in front["configs"]] == ["balanced"]
    assert "dropped, over quota: 2" in Text(html).seen


@pytest.mark.parametrize(("rows", "size"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**9 - 1, "100M<n<1B"), (10**9, "1B<n<10B")])
def test_the_size_category_counts_the_rows(store, rows, size):
    front, _ = split(generation_card(store, ["ant", "bee"], rows))
    assert front["size_categories"] == [size]


def test_the_card_of_a_teacher_shows_its_metrics(tmp_path):
    front, html = split(written_model_card(tmp_path, ["ant", "bee"], {"test": {"top1": 0.948, "images": 5000}}))
    assert (front["library_name"], front["pipeline_tag"]) == ("timm", "image-classification")
    assert "test: top-1 94.80% on 5,000 images" in Text(html).seen


def test_a_teachers_card_written_again_shows_the_newest_metrics(tmp_path):
    written_model_card(tmp_path, ["ant", "bee"], {"test": {"top1": 0.5, "images": 5}})
    _, html = split(written_model_card(tmp_path, ["ant", "bee"], {"test": {"top1": 0.6, "images": 5}}))
    assert "60.00%" in html
    assert "50.00%" not in html


def seal_teacher(store, name="net", metrics=None, **inputs):
    """A teacher without a network, measured or not."""
    request = TeacherRequest(settings={"model": "resnet18"}, inputs=inputs)
    staging = store.find_or_stage(request, name, first_generation=0)
    (staging.build / "config.json").write_text('{"architecture": "resnet18"}')
    known = {"parameters": 11, "steps": 7, "labeled": 30, "entries": 60}
    version = staging.seal(staging.build_manifest({}, ["ant", "bee", "cat"], known))
    if metrics is not None:
        (version.folder / "metrics.json").write_text(json.dumps(metrics))
    return version


def seal_labels(store, teachers, name="bugs", **about):
    """A generation of three labels by these teachers, by role, with what else stands in its manifest."""
    inputs = {role: one if isinstance(one, Input) else one.lineage for role, one in teachers.items()}
    request = GenerationRequest(settings=about.pop("settings", {}), inputs=inputs | {"pool": Input(ref="/home/me/pool", digest="p")})
    labels = seal_generation(store, [label_row(index, index, index, 0.9) for index in range(3)], "labels-of-" + name, counts=about)
    staging = store.find_or_stage(request, name)
    shutil.copytree(labels.folder / "pseudo_labels", staging.build / "pseudo_labels")
    return staging.seal(staging.build_manifest(labels.manifest.files, labels.manifest.class_names, labels.manifest.counts))


def rewrite(version, inputs=None, counts=None):
    """As a stranger would: with inputs and counts that it had not."""
    content = json.loads((version.folder / "nst.json").read_text())
    content["request"]["inputs"] |= inputs or {}
    content["counts"] |= counts or {}
    (version.folder / "nst.json").write_text(json.dumps(content))


def seal_selection(store, generation, **changes):
    return seal_edition(store, generation, [label_row(index, index, index, 0.9) for index in range(2)], **changes)


PLACE = Published("alice/bugs", "gen-1.1")
NOT_NAMED = "Not named: the labels were made elsewhere, by a model or by people."
TEST = {"test": {"top1": 0.948, "images": 500, "source": "/home/me/test"}}


def section(card, heading):
    """What a reader sees under a heading."""
    _, html = split(card)
    return Text(html.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]).seen.strip()


def test_the_card_of_an_edition_names_the_teacher_of_its_generation_with_its_accuracy(store):
    teacher = seal_teacher(store, metrics=TEST)
    edition = seal_selection(store, seal_labels(store, {"teacher": teacher}))
    assert section(dataset_card(edition), "Teacher") == "net@gen-0; test: top-1 94.80% on 500 images"
    card = dataset_card(edition, Published("alice/bugs", "gen-1.1", {"teacher": "alice/net@gen-0"}))
    assert section(card, "Teacher") == "net@gen-0; test: top-1 94.80% on 500 images"
    assert "(https://huggingface.co/alice/net/tree/gen-0)" in card


def test_a_teacher_from_the_hub_is_linked_at_its_commit(store):
    generation = seal_labels(store, {"teacher": Input(ref="hf-hub:timm/resnet18@main", digest="d", revision="0123abc")})
    card = dataset_card(generation)
    assert section(card, "Teacher") == "hf-hub:timm/resnet18@main; revision 0123abc; its accuracy is not known here"
    assert "(https://huggingface.co/timm/resnet18/tree/0123abc)" in card


def test_each_teacher_of_an_ensemble_has_its_share_and_its_accuracy(store):
    first, second = seal_teacher(store, metrics=TEST), seal_teacher(store, "other", metrics={"test": {"top1": 0.25}})
    card = dataset_card(seal_labels(store, {"teacher_1": first, "teacher_2": second}))
    assert section(card, "Teacher").split("\n") == [
        "net@gen-0; one of 2, each has the same share of the mean; test: top-1 94.80% on 500 images",
        "other@gen-0; one of 2, each has the same share of the mean; test: top-1 25.00%",
    ]


def test_a_teachers_lineage_goes_back_to_the_first_one(store):
    first = seal_teacher(store, metrics=TEST)
    edition = seal_selection(store, seal_labels(store, {"teacher": first}))
    student = seal_teacher(store, labeled=Input(ref="/labeled", digest="l"), edition=edition.lineage)
    card = model_card(student, Published("alice/net", "gen-1", {"edition": "alice/bugs@gen-1.1"}))
    assert section(card, "Lineage").split("\n") == [
        "net@gen-0: trained on 30 labeled images; test: top-1 94.80% on 500 images",
        "bugs@gen-1: 3 images labeled by it",
        "bugs@gen-1.1: 6 entries from 2 images selected",
        "net@gen-1: trained on 30 labeled images and 60 pseudo-labeled entries",
    ]
    shutil.rmtree(store.root / "corpora" / "bugs" / "gen-1")
    assert section(model_card(student), "Lineage").startswith("bugs@gen-1: further back the store here does not reach\n")


@pytest.mark.parametrize("anonymous", [False, True])
def test_in_public_no_path_of_this_machine_is_shown(store, anonymous):
    teacher = Input(ref="local-dir:/home/me/net", digest="d")
    generation = seal_labels(store, {"teacher": teacher}, settings={"model": "local-dir:/home/me/net", "noise": {"start": "/home/me/x"}})
    edition = seal_selection(store, generation, pool=Input(ref="/home/me/pool", digest="p"))
    student = seal_teacher(store, metrics=TEST, labeled=Input(ref="/home/me/labeled", digest="l"), edition=edition.lineage)
    place = Published("alice/bugs", "gen-1", anonymous=anonymous)
    cards = [dataset_card(generation, place), dataset_card(edition, place), model_card(student, place)]
    for card in cards:
        assert "/home" not in card
        assert str(store.root) not in card
    assert ["pool", "pool", "p"] in rows_of(split(cards[0])[1], "Made from")[0]


def test_in_its_folder_a_card_shows_paths_of_this_machine_in_the_command_alone(store):
    teacher, metrics = (
        Input(ref="local-dir:/home/me/net", digest="d"),
        {"test": {"top1": 0.9, "images": 5, "source": "/home/me/photos/test"}},
    )
    generation = seal_labels(store, {"teacher": teacher}, settings={"noise": {"start": "/home/me/x"}})
    edition = seal_selection(store, generation, pool=Input(ref="/home/me/pool", digest="p"))
    both = Input(ref="/home/me/a + /home/me/b.csv", digest="l", sources=("/home/me/a", "/home/me/b.csv"))
    student = seal_teacher(store, metrics=metrics, labeled=both, edition=edition.lineage)
    cards = [dataset_card(generation), dataset_card(edition), model_card(student)]
    for card in cards:
        command = card.partition("To reproduce")[2].split("```")[1]
        assert "/home" not in card.replace(command, "")
    assert "nst train --labeled /home/me/a --labeled /home/me/b.csv" in cards[2]
    assert ["labeled", "a + b.csv", "l"] in rows_of(split(cards[2])[1], "Made from")[0]
    assert split(cards[2])[0]["model-index"][0]["results"][0]["dataset"]["name"] == "test"


def test_in_public_a_version_is_loaded_from_its_tag(store):
    card = dataset_card(seal_selection(store, seal_labels(store, {"teacher": seal_teacher(store)})), PLACE)
    for line in (
        'load_dataset("alice/bugs", "balanced", split="train", revision="gen-1.1")',
        'pl.scan_parquet("hf://datasets/alice/bugs@gen-1.1/balanced/*.parquet")',
        "nst train --labeled LABELED --pseudo alice/bugs@gen-1.1 --pool MY-COPY --model MODEL --name NAME",
        "nst pull alice/bugs@gen-1.1",
    ):
        assert line in card
    card = model_card(seal_teacher(store, "other"), Published("alice/net", "gen-0"))
    for line in (
        'timm.create_model("hf-hub:alice/net@gen-0", pretrained=True)',
        'AutoModelForImageClassification.from_pretrained("alice/net", revision="gen-0")',
        "nst label POOL --teacher hf-hub:alice/net@gen-0 --corpus NAME",
    ):
        assert line in card


def test_the_code_of_a_card_runs_beside_its_folder(tiny_store, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for ref, name in (("tiny@gen-1", "rows"), ("tiny@gen-1.1", "rows"), ("tiny-teacher@gen-0", "model")):
        version = tiny_store[0].open(ref)
        monkeypatch.chdir(version.folder.parent)
        (code,) = re.findall(r"```python\n(.*?)```", (version.folder / "README.md").read_text(), re.DOTALL)
        found = {}
        exec(code, found)
        assert found[name] is not None


def test_an_anonymous_version_says_what_that_costs(store):
    edition = seal_selection(store, seal_labels(store, {"teacher": seal_teacher(store)}))
    assert "anonymous" not in dataset_card(edition, PLACE)
    card = dataset_card(edition, Published("alice/bugs", "gen-1.1", anonymous=True))
    assert "nothing can be trained on it" in section(card, "Known limits")
    assert "Train on it" not in card


def limits(store, **about):
    return section(dataset_card(seal_labels(store, {"teacher": Input(ref="net@gen-0", digest="t")}, **about)), "Known limits")


def test_limits_are_those_of_this_version(store):
    plain = limits(store)
    assert "The confidences are not calibrated" in plain
    assert "could not be read" not in plain
    calibration = dict.fromkeys(("temperature", "ece_before", "ece_after", "nll_before", "nll_after"), 0.5) | {"images": 77}
    known = limits(store, name="others", calibration=calibration, errors=5, top_k=2, pool=12, settings={"limit": 12, "noise": True})
    assert "calibrated by one temperature on 77 labeled images" in known
    assert "The confidences are not calibrated" not in known
    for sentence in (
        "5 pool images could not be read",
        "the 2 most probable ones",
        "Only the first 12 images",
        "The teacher was noised",
    ):
        assert sentence in known


def test_of_a_part_of_the_pool_a_card_does_not_say_that_it_was_all(store):
    teachers = {"teacher": Input(ref="net@gen-0", digest="t")}
    part = dataset_card(seal_labels(store, teachers, pool=3, settings={"limit": 3}))
    assert "images labeled of the first 3 in the pool" in Text(split(part)[1]).seen
    assert "Only the first 3 images" in section(part, "Known limits")
    whole = dataset_card(seal_labels(store, teachers, name="all", pool=3, settings={"limit": 50}))
    assert "images labeled of 3 in the pool" in Text(split(whole)[1]).seen
    assert "Only the first" not in section(whole, "Known limits")


@pytest.mark.parametrize("teacher", [None, "hf-hub:owner/net"])
@pytest.mark.parametrize("kind", ["generation", "edition"])
def test_of_adopted_labels_a_card_says_no_more_than_is_known(store, teacher, kind):
    inputs = {"adopted": Input(ref="/data/labels.csv", digest="a")} | ({"teacher": Input(ref=teacher, digest="t")} if teacher else {})
    version = seal_labels(store, inputs, top_k=1)
    version = version if kind == "generation" else seal_selection(store, version)
    card = dataset_card(version, PLACE)
    known = section(card, "Known limits")
    assert ("The labels are machine-made" in known, "by a machine or by people" in known) == (bool(teacher), not teacher)
    assert "nst has checked their form, not where they come from" in known
    assert "Whether the confidences are calibrated is not known." in known
    assert "the rest is lost" not in known
    assert split(card)[0]["annotations_creators"] == ["machine-generated" if teacher else "found"]
    named = section(card, "Teacher")
    assert named == (f"{teacher}; its accuracy is not known here" if teacher else NOT_NAMED)


def test_an_edition_says_whether_held_out_images_were_left_out(store):
    generation = seal_labels(store, {"teacher": seal_teacher(store)})
    assert "may contain images that you test on" in section(dataset_card(seal_selection(store, generation)), "Known limits")


def test_a_relabeled_edition_says_what_was_left_out_when_its_images_were_selected(store):
    edition = seal_selection(store, seal_labels(store, {"teacher": seal_teacher(store)}))
    again = seal_selection(store, edition, role="like")
    known = section(dataset_card(again), "Known limits")
    assert "may contain images that you test on" in known
    assert "the classes are no longer balanced. Images of 2 of 3 classes are repeated" in known
    assert "It is balanced only" not in known
    rewrite(edition, inputs={"exclude_1": {"ref": "/home/me/test", "digest": "t"}}, counts={"held_out_unreadable": 7})
    known = section(dataset_card(again), "Known limits")
    assert "may contain images that you test on" not in known
    assert "7 excluded images could not be read" in known
    shutil.rmtree(edition.folder)
    assert "Whether images that you test on were excluded is not known here" in section(dataset_card(again), "Known limits")


def test_license_and_source_stand_in_the_users_words(store):
    generation = seal_labels(store, {"teacher": seal_teacher(store)})
    card = dataset_card(generation, Published("alice/bugs", "gen-1", license="Research only", pool_source="My *own* photos"))
    assert section(card, "License and source") == "license: Research only\nthe pool's images: My *own* photos"
    assert "none was named" in section(dataset_card(generation, PLACE), "License and source")


@pytest.mark.parametrize(
    ("license", "says"),
    [
        ("cc-by-nc-4.0", "it allows no commercial use"),
        ("cc-by-nd-4.0", "it allows nobody to share what is made from it"),
        ("cc-by-nc-nd-4.0", "it allows no commercial use and it allows nobody to share what is made from it"),
        ("other (my-terms)", "read its terms before you share this"),
        ("creativeml-openrail-m", "read its terms before you share this"),
        ("mit", None),
        ("cc-by-sa-4.0", "what is made from it must be shared under the same license"),
        ("fair-noncommercial-research-license", "it allows no commercial use"),
        ("gpl-3.0", "read its terms before you share this"),
        ("mit + apple-amlr", "read its terms before you share this"),
        ("mit + cc-by-4.0", None),
        ("ncsa", None),
    ],
)
def test_the_licenses_of_teacher_and_images_stand_in_the_cards_of_all_that_was_made_from_them(store, license, says):
    weights = Input(ref="owner/weights", digest="w", revision="c", license="apache-2.0")
    teacher = seal_teacher(store, initial_weights=weights, labeled=Input(ref="owner/photos", digest="l", license=license))
    generation = seal_labels(store, {"teacher": teacher})
    edition = seal_selection(store, generation)
    student = seal_teacher(store, "student", edition=edition.lineage)
    line = f"license of the labeled images owner/photos: {license}" + (f"; {says}" if says else "")
    for card in (model_card(teacher, PLACE), dataset_card(edition, PLACE), model_card(student, None)):
        assert line in section(card, "License and source").splitlines()
        assert "license of the initial weights owner/weights: apache-2.0" in section(card, "License and source").splitlines()
    assert (split(model_card(teacher, PLACE))[0].get("license") == "apache-2.0") == (says is None)
    hidden = section(dataset_card(generation, Published("a/b", "gen-1", anonymous=True)), "License and source")
    assert f"license of the labeled images: {license.removesuffix(' (my-terms)')}" in hidden
    assert "my-terms" not in hidden
    assert "owner" not in hidden


def test_the_license_of_initial_weights_stays_where_it_forbids_more_than_that_of_the_images(store):
    weights = Input(ref="owner/weights", digest="w", revision="c", license="cc-by-nc-4.0")
    teacher = seal_teacher(store, initial_weights=weights, labeled=Input(ref="owner/photos", digest="l", license="mit"))
    assert split(model_card(teacher, PLACE))[0]["license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_from_a_manifest_show_as_text_everywhere(store, name):
    teachers = {"teacher": Input(ref=name, digest=name, revision=name)}
    generation = seal_labels(store, teachers, settings={name: name, "nested": {name: [name]}})
    rewrite(generation, inputs={name: Input(ref=f"/data/{name}", digest=name).model_dump()}, counts={"per_class": {name: 3}, name: name})
    generation = store.open(generation.ref)
    links = {"teacher": name, "pool": f"alice/{name}@{name}", name: "a/b@main"}
    for place in (None, Published("alice/bugs", "gen-1", links, license=name, pool_source=name)):
        card = dataset_card(generation, place)
        _, html = split(card)
        seen = Text(html)
        usual = {"h1", "h2", "p", "a", "strong", "ul", "li", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
        assert set(seen.tags) <= usual
        linked = ["https://huggingface.co/datasets/a/b/tree/main"] if place else []
        assert re.findall(r'href="(.*?)"', html) == ["https://arxiv.org/abs/1911.04252", *linked]
        assert in_one_line(name) in section(card, "Teacher")
        assert in_one_line(name) in section(card, "Settings")
        assert card.count(f"\n{BEGIN}") == 1
    assert in_one_line(name) in section(card, "License and source")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_results_and_reasons_show_as_text(store, name):
    generation = seal_labels(store, {"teacher": seal_teacher(store, metrics={name: {"top1": 0.5}})})
    edition = seal_selection(store, generation)
    rewrite(edition, counts={"dropped": {name: 3}, "classes_without_images": [name]})
    edition = store.open(edition.ref)
    student = seal_teacher(store, metrics={name: {"top1": 0.5}}, labeled=Input(ref="/l", digest="l"), edition=edition.lineage)
    for card, heading in ((dataset_card(edition), "Teacher"), (model_card(student), "Lineage")):
        seen = Text(split(card)[1])
        assert not {"script", "img", "h3", "blockquote", "em", "hr"} & set(seen.tags)
        assert f"{in_one_line(name)}: top-1 50.00%" in section(card, heading) + seen.seen
    assert f"dropped, {in_one_line(describe_reason(name))}: 3" in Text(split(dataset_card(edition))[1]).seen


def test_of_many_classes_the_largest_and_the_smallest_are_named(store):
    names = [f"class {index}" for index in range(300)]
    staging = store.find_or_stage(request("generation"), "flowers")
    per_class = {name: index for index, name in enumerate(names)}
    write_dataset_card(staging, staging.build_manifest({}, names, COUNTS["generation"] | {"per_class": per_class}))
    rows, _ = rows_of(split((staging.build / "README.md").read_text())[1], "Labels per class")
    assert len(rows) == 41
    assert rows[0] == ["class 299", "299"]
    assert rows[20][0] == "(others, see nst.json)"
    assert rows[-1] == ["class 0", "0"]


OWN = "\r\n# Mine\r\n\r\nkeep *me*\n"


def test_what_the_user_wrote_survives_new_metrics(tiny_store, tmp_path):
    store = Store(shutil.copytree(tiny_store[0].root, tmp_path / "store"))
    teacher = store.open("tiny-teacher@gen-0")
    path = teacher.folder / "README.md"
    path.write_bytes(path.read_bytes().replace(f"{BEGIN}\n\n".encode(), f"{BEGIN}{OWN}".encode()))
    measure_and_record(store, teacher, open_source(str(tiny_store[1]), labeled=True), "other images")
    card = path.read_bytes().decode()
    assert "**other images**: top-1" in card
    assert f"{BEGIN}{OWN}{END}" in card
    assert teacher.verify() == []


def test_what_the_user_wrote_survives_the_next_push(store):
    generation = seal_labels(store, {"teacher": seal_teacher(store)})
    first = dataset_card(generation, PLACE).replace(f"{BEGIN}\n\n", f"{BEGIN}{OWN}")
    edition = seal_selection(store, generation)
    assert f"{BEGIN}{OWN}{END}" in dataset_card(edition, Published("alice/bugs", "gen-1.1", earlier_card=first))
    damaged = dataset_card(edition, Published("alice/bugs", "gen-1.1", earlier_card=first.replace(END, "")))
    assert OWN in damaged
    assert "the mark that ends your own text was missing" in Text(split(damaged)[1]).seen


def test_what_the_user_wrote_into_the_folder_goes_with_the_first_push(store):
    generation = seal_labels(store, {"teacher": seal_teacher(store)})
    local = dataset_card(generation).replace(f"{BEGIN}\n\n", f"{BEGIN}{OWN}").replace("---\n", "---\nlicense: mit\n", 1)
    (generation.folder / "README.md").write_bytes(local.encode())
    card = dataset_card(generation, PLACE)
    assert f"{BEGIN}{OWN}{END}" in card
    assert split(card)[0]["license"] == "mit"


def test_a_card_shows_the_pictures_that_its_folder_has(store):
    generation = seal_labels(store, {"teacher": seal_teacher(store)})
    assert "![" not in dataset_card(generation)
    (generation.folder / "confidence.png").touch()
    shown = re.findall(r"!\[[^\]]+\]\((.*?)\)", dataset_card(generation, PLACE))
    assert shown == ["confidence.png"]


def test_the_page_reads_reasons_as_cards_do():
    page = (Path(__file__).parents[1] / "cli" / "look" / "page" / "marks.js").read_text("utf-8")
    (written,) = re.findall(r"IN_WORDS = \{(.*?)\};", page)
    on_the_page = dict(re.findall(r'(\w+): "([^"]+)"', written))
    assert on_the_page == {reason: describe_reason(reason) for reason in REASONS if describe_reason(reason) != reason.replace("_", " ")}
