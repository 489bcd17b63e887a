import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nst_cli.main import app
from sealed_labels import NAMES, label_row, seal_edition, seal_generation
from typer.testing import CliRunner
from wording import mentions

from nst_data.store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def nst(store, *arguments):
    return CliRunner().invoke(app, [*map(str, arguments), "--store", str(store.root)], catch_exceptions=False)


def show_output(store, *arguments):
    """What `nst show` prints, checked to fit a narrow screen but for paths and digests."""
    result = nst(store, "show", *arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [
        line for line in lines[lines.index("counts") : lines.index("settings")] if len(line) > 80 and not line.startswith("quality against")
    ] == []
    return result.stdout


def show_json(store, *arguments):
    result = nst(store, "show", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def generation(store):
    confidences = [0.05, 0.95, 0.95, 0.35, 1.0]
    return seal_generation(store, [label_row(row, row, row % 2, confidence) for row, confidence in enumerate(confidences)])


def edition(store):
    return seal_edition(store, generation(store), [label_row(1, 1, 1, 0.95, copies=4), label_row(2, 2, 0, 0.95)])


def write_truth(tmp_path, labels):
    pq.write_table(pa.table({"label": labels}), tmp_path / "truth.parquet")
    return tmp_path / "truth.parquet"


def test_a_generation_shows_its_confidences(store):
    lines = show_output(store, generation(store).ref).splitlines()
    at = lines.index("confidence")
    assert lines[at + 1] == f"  0.0 to 0.1       1  {'#' * 19}"
    assert lines[at + 2] == "  0.1 to 0.2       0"
    assert lines[at + 4] == f"  0.3 to 0.4       1  {'#' * 19}"
    assert lines[at + 10] == f"  0.9 to 1.0       3  {'#' * 58}"
    assert lines[at + 11] == "settings"


def test_an_edition_shows_the_confidences_before_and_after_selection(store):
    lines = show_output(store, edition(store).ref).splitlines()
    at = lines.index("confidence")
    assert lines[at + 1].split() == ["bugs@gen-1", "bugs@gen-1.1"]
    assert lines[at + 2].split() == ["0.0", "to", "0.1", "1", "#" * 8, "0"]
    assert lines[at + 11].split() == ["0.9", "to", "1.0", "3", "#" * 24, "2", "#" * 24]


def test_an_edition_whose_generation_is_elsewhere_shows_its_own_confidences(store):
    ref = edition(store).ref
    other = generation(Store(store.root))  # another labeling takes the place of the first
    store.open("bugs@gen-1").folder.rename(store.root / "gone")
    other.folder.rename(store.root / "corpora" / "bugs" / "gen-1")
    assert [one["ref"] for one in show_json(store, ref)["confidence"]] == ["bugs@gen-1.1"]


def test_an_edition_that_is_like_another_is_shown_beside_it(store):
    parent = edition(store)
    again = seal_edition(store, parent, [label_row(1, 1, 0, 0.75), label_row(2, 2, 0, 0.5)], role="like")
    assert [one["ref"] for one in show_json(store, again.ref)["confidence"]] == ["bugs@gen-1.1", "bugs@gen-2.1"]


def test_the_json_has_the_manifest_and_every_bin(store):
    result = show_json(store, edition(store).ref)
    assert result["version"] == "gen-1.1"
    before, after = result["confidence"]
    assert [one["images"] for one in before["bins"]] == [1, 0, 0, 1, 0, 0, 0, 0, 0, 3]
    assert [one["images"] for one in after["bins"]] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (before["ref"], before["bins"][3], before["outside"]) == ("bugs@gen-1", {"low": 0.3, "high": 0.4, "images": 1}, 0)


def test_a_confidence_that_is_no_number_is_told(store):
    ref = seal_generation(store, [label_row(0, 0, 0, float("nan")), label_row(1, 1, 0, 0.5)]).ref
    assert mentions(show_output(store, ref), "1 of bugs@gen-1 … confidence … no number in [0, 1]")


def test_class_counts_before_and_after_stand_side_by_side_and_empty_classes_are_named(store):
    text = show_output(store, edition(store).ref)
    assert (
        "  class  labeled  selected  entries\n  ant          2         1        3\n  bee          2         1        3\n  cat          0"
        in text
    )
    assert "1 class without any image: cat" in text
    assert "0 excluded, 1 duplicate, 1,234 low confidence" in text


def test_the_twenty_largest_of_many_classes_are_shown(store):
    names = [f"class-{number:02d}" for number in range(30)]
    rows = [label_row(row, row, label, 0.5, classes=30) for row, label in enumerate([29] * 3 + [28] * 2 + list(range(25)))]
    text = show_output(store, seal_generation(store, rows, names=names).ref)
    assert "classes (the largest 20 of 30, --json shows all)\n  class     labeled\n  class-29        3\n  class-28        2\n" in text
    assert "3 classes without any image: class-25, class-26, class-27" in text
    assert sum(line.startswith("  class-") for line in text.splitlines()) == 20


def test_of_very_many_empty_classes_some_are_named(store):
    names = [f"class-{number:02d}" for number in range(30)]
    text = show_output(store, seal_generation(store, [label_row(0, 0, 0, 0.5, classes=30)], names=names).ref)
    assert "29 classes without any image: class-01, class-02," in text
    assert "class-20 and 9 more" in " ".join(text.split())


def test_names_from_the_data_are_shown_as_text(store, tmp_path):
    names = ["[red]ant[/red]", "a\x1b[31mbee", "cat 猫"]
    version = seal_generation(store, [label_row(row, row, label, 0.5) for row, label in enumerate([0, 1, 1, 2])], names=names)
    text = show_output(store, version.ref, "--truth", write_truth(tmp_path, [names[label] for label in (1, 0, 0, 2)]))
    assert "  [red]ant[/red]  " in text
    assert "  a\\x1b[31mbee     " in text
    assert "\x1b" not in text
    assert "cat 猫" in text


def test_settings_that_came_later_are_shown_with_their_value_of_before_and_defaults_in_words(tiny_store):
    store, _, _ = tiny_store
    said = [" ".join(line.split()) for line in show_output(store, "tiny-teacher@gen-0").splitlines()]
    settings = said[said.index("settings") + 1 :]
    for line in (
        "steps none",
        "test_size that of training",
        "batch_norm_decay the network's own (0.9 in timm)",
        "schedule staircase",
        "weight_decay_on all",
        "mixup 0",
        "fused_attention True",
        "pseudo_noise as of labeled images",
    ):
        assert line in settings
    assert not any(line.startswith("freeze_by") for line in settings)  # nothing is frozen
    assert "at_threshold drop" in [" ".join(line.split()) for line in show_output(store, "tiny@gen-1.1").splitlines()]
    assert "noise_transform" not in show_output(store, "tiny@gen-1")


def test_a_teacher_shows_no_confidences(tiny_store):
    store, _, _ = tiny_store
    assert "confidence" not in show_output(store, "tiny-teacher@gen-0")
    assert "confidence" not in show_json(store, "tiny-teacher@gen-0")


def test_the_quality_against_labels_alone(store, tmp_path):
    text = show_output(store, generation(store).ref, "--truth", write_truth(tmp_path, ["ant", "bee", "cat", "cat", "ant"]))
    assert "5 of 5 images have a true label there, joined by row\n  accuracy 60.00%, expected calibration error" in text
    assert "  confidence  images  accuracy  mean confidence\n  0.0 to 0.1       1   100.00%            5.00%\n  0.3 to 0.4" in text
    assert "most frequent mistakes\n  labeled  truly  images\n  ant      cat         1\n  bee      cat         1\n" in text
    assert "least precise classes\n  class  labeled  correct  precision\n  bee          2        1     50.00%\n" in text
    assert "  ant          3        2     66.67%\nsettings\n" in text


def test_the_quality_of_an_edition_against_labeled_images_in_another_layout(tiny_store, tmp_path):
    store, _, pool = tiny_store
    for image in pool.iterdir():
        folder = tmp_path / "truth" / NAMES[int(image.name[0])]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / image.name).write_bytes(image.read_bytes())
    for ref in ("tiny@gen-1", "tiny@gen-1.1"):
        quality = show_json(store, ref, "--truth", tmp_path / "truth")["quality"]
        assert (quality["joined_by"], quality["joined"], quality["labels"], quality["truth_rows"]) == ("image_hash", 15, 15, 15)
        assert sum(row["images"] for row in quality["precision"]) == 15
        correct = sum(row["correct"] for row in quality["precision"])
        assert (quality["accuracy"], sum(row["images"] for row in quality["wrong_pairs"])) == (correct / 15, 15 - correct)


def test_rows_of_the_truth_that_are_left_out_are_told(store, tmp_path):
    version = generation(store)
    hashes = [label_row(0, image, 0, 0)["image_hash"] for image in (0, 0, 1)]
    pq.write_table(pa.table({"image_hash": hashes, "label": ["ant", "bee", "bee"]}), tmp_path / "truth.parquet")
    text = show_output(store, version.ref, "--truth", tmp_path / "truth.parquet")
    assert "1 of 5 images have a true label there, joined by image_hash" in text
    assert mentions(text, "2 of its 3 rows … left out: …")
    assert "most frequent mistakes" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny-teacher@gen-0", "--truth", "x"], "tiny-teacher@gen-0 is a teacher …; `nst evaluate tiny-teacher@gen-0"),
        (["tiny@gen-1", "--class-names", "x"], "require --truth SOURCE"),
        (["tiny@gen-1", "--label-column", "x"], "--label-column require --truth"),
        (["tiny@gen-1", "--image-column", "x"], "require --truth SOURCE"),
    ],
)
def test_wrong_use_is_one_line(tiny_store, words, message):
    result = nst(tiny_store[0], "show", *words)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert mentions(result.stderr, message)


def test_a_truth_that_is_not_there_is_one_line(tiny_store):
    result = nst(tiny_store[0], "show", "tiny@gen-1", "--truth", "nowhere/at-all/truth.parquet")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "nowhere/at-all/truth.parquet: no such file or folder" in result.stderr


def test_a_damaged_table_is_one_line(store):
    version = generation(store)
    next((version.folder / "pseudo_labels").iterdir()).write_bytes(b"PAR1 no more")
    result = nst(store, "show", version.ref)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert mentions(result.stderr, "nst: bugs@gen-1: … cannot be read (")
    assert mentions(result.stderr, "`nst verify` …")


def test_what_was_counted_once_is_shown_again_without_reading_the_labels(store):
    command = ["nst", "show", edition(store).ref, "--store", str(store.root)]
    first = show_output(store, command[2])
    code = f"import sys\nfrom nst_cli.main import run\nsys.argv = {command!r}\n"
    code += "try:\n    run()\nexcept SystemExit as end:\n    assert not end.code\n"
    code += "print(sorted({name.partition('.')[0] for name in sys.modules} & {'polars', 'pyarrow', 'numpy', 'torch'}))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert again == first + "[]\n"
    assert "confidence" in first


def test_labels_that_somebody_wrote_to_are_counted_again(store):
    version = generation(store)
    show_output(store, version.ref)
    (table,) = (version.folder / "pseudo_labels").iterdir()
    table.write_bytes(table.read_bytes()[:-9])
    assert mentions(nst(store, "show", version.ref).stderr, "nst: bugs@gen-1: … cannot be read (")


def test_counts_of_an_edition_are_called_as_in_its_table_of_classes(store):
    counts = show_output(store, edition(store).ref).partition("counts")[2]
    assert re.search(r"^  selected +[0-9]+$", counts, re.MULTILINE)
    assert re.search(r"^  entries +[0-9]+$", counts, re.MULTILINE)
    assert not re.search("unique|copies", counts)
