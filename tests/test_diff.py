import json

import pytest
from nst_cli.main import app
from sealed_labels import label_row, seal_edition, seal_generation
from typer.testing import CliRunner
from wording import mentions

from nst_data.store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def nst(store, *arguments):
    return CliRunner().invoke(app, ["diff", *map(str, arguments), "--store", str(store.root)], catch_exceptions=False)


def diff_output(store, *arguments):
    result = nst(store, *arguments)
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []
    return result.stdout


def seal(store, labels, **more):
    """A generation of images 0, 1, ... with these labels, all with confidence 0.5."""
    return seal_generation(store, [label_row(row, row, label, 0.5) for row, label in enumerate(labels)], **more)


def test_two_generations_in_sentences_and_tables(store):
    seal(store, [0, 0, 1, 2])
    seal(store, [0, 2, 1])
    text = diff_output(store, "bugs@gen-1", "bugs@gen-2")
    assert text == (
        "bugs@gen-1 to bugs@gen-2\n"
        "  images      3 in both, 1 only in bugs@gen-1, 0 only in bugs@gen-2\n"
        "  labels      1 of the 3 in both changed (33.33%)\n"
        "  confidence  changed by 0.0000 on average, up or down\n"
        "most frequent changes\n"
        "  from  to   images\n"
        "  ant   cat       1\n"
        "labels of bugs@gen-1 that changed, by class\n"
        "  class  images  changed   share\n"
        "  ant         2        1  50.00%\n"
        "  bee         1        0   0.00%\n"
        "labels of bugs@gen-1 that changed, by confidence\n"
        "  confidence  images  changed   share\n"
        "  0.4 to 0.5       3        1  33.33%\n"
    )


def test_a_generation_and_its_edition_differ_in_images_alone(store):
    parent = seal(store, [0, 1, 2])
    edition = seal_edition(store, parent, [label_row(1, 1, 1, 0.5)])
    text = diff_output(store, parent.ref, edition.ref)
    assert "images      1 in both, 2 only in bugs@gen-1, 0 only in bugs@gen-1.1" in text
    assert "labels      0 of the 1 in both changed (0.00%)" in text
    assert "most frequent changes" not in text
    assert "copies" not in text


def test_two_editions_tell_whose_copies_changed(store):
    parent = seal(store, [0, 1])
    for copies in (1, 2):
        seal_edition(store, parent, [label_row(0, 0, 0, 0.5, copies=copies), label_row(1, 1, 1, 0.5)])
    assert "copies      changed for 1 of the 2 in both" in diff_output(store, "bugs@gen-1.1", "bugs@gen-1.2")


def test_two_corpora_with_their_classes_in_another_order(store):
    seal(store, [0, 1, 2])
    seal(store, [2, 1, 0], name="others", names=["cat", "bee", "ant"])
    assert json.loads(diff_output(store, "bugs", "others", "--json"))["changed"] == 0


def test_the_json_has_everything(store):
    seal(store, [0, 0, 1])
    seal(store, [0, 2, 1])
    result = json.loads(diff_output(store, "bugs@gen-1", "bugs@gen-2", "--json"))
    assert {name: result[name] for name in ("before", "after", "both", "only_before", "only_after", "changed")} == {
        "before": "bugs@gen-1",
        "after": "bugs@gen-2",
        "both": 3,
        "only_before": 0,
        "only_after": 0,
        "changed": 1,
    }
    assert result["changes"] == [{"before": "ant", "after": "cat", "images": 1}]
    assert result["by_class"][0] == {"name": "ant", "images": 2, "changed": 1, "share": 0.5}
    assert result["by_confidence"][4] == {"low": 0.4, "high": 0.5, "images": 3, "changed": 1, "share": 1 / 3}
    assert result["copies_changed"] is None


def test_tables_without_a_common_image_say_so_and_no_more(store):
    seal(store, [0])
    seal_generation(store, [label_row(0, "another image", 0, 0.5)])
    assert diff_output(store, "bugs@gen-1", "bugs@gen-2").splitlines()[1:] == [
        "  images      0 in both, 1 only in bugs@gen-1, 1 only in bugs@gen-2"
    ]


def test_names_from_the_data_are_shown_as_text(store):
    names = ["[bold]ant[/bold]", "b\x1b[2Jee", "cat"]
    seal(store, [0, 1], names=names)
    seal(store, [1, 0], names=names)
    text = diff_output(store, "bugs@gen-1", "bugs@gen-2")
    assert "  [bold]ant[/bold]  b\\x1b[2Jee" in text
    assert "\x1b" not in text


def test_numbers_have_separators_and_many_classes_are_cut(store):
    names = [f"class-{number:02d}" for number in range(20)]
    before, after = ([label_row(row, row, (row + shift) % 20, 0.5, classes=20) for row in range(1200)] for shift in (0, 1))
    for rows in (before, after):
        seal_generation(store, rows, names=names)
    text = diff_output(store, "bugs@gen-1", "bugs@gen-2")
    assert "labels      1,200 of the 1,200 in both changed (100.00%)" in text
    assert "by class (10 of 20, --json shows all)" in text


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["bugs", "dogs"],
            1,
            "bugs@gen-1 and dogs@gen-1: … 1 only in the first (cat) and 1 only in the second (dog); choose two",
        ),
        (["bugs", "bugs@gen-9"], 2, "bugs@gen-9: … generation or edition …"),
        (["bugs"], 2, "Missing argument 'B'"),
    ],
)
def test_wrong_use_is_one_line(store, words, status, message):
    seal(store, [0])
    seal(store, [0], name="dogs", names=["ant", "bee", "dog"])
    result = nst(store, *words)
    assert (result.exit_code, result.stdout) == (status, "")
    assert mentions(" ".join(result.stderr.split()), message)


def test_a_teacher_has_no_labels_to_compare(tiny_store):
    result = nst(tiny_store[0], "tiny", "tiny-teacher")
    assert result.exit_code == 2
    assert mentions(result.stderr, "tiny-teacher: … generation or edition …")
