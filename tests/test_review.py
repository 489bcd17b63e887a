import csv
import json
import shutil

import polars as pl
import pyarrow.parquet as pq
import pytest
from datasets import Features
from labels import RUN, SETTINGS, write_teacher
from nst_cli.main import app
from sealed_labels import label_row, seal_generation
from test_adopt_tables import RecordingProgress
from typer.testing import CliRunner
from wording import is_line, mentions

from nst_data.errors import NstError, UsageError
from nst_data.formats.export import export
from nst_data.progress import Progress
from nst_data.review.answer_files import export_answers, import_answers
from nst_data.review.answers import AnswerLog, resolve_answers
from nst_data.review.freeze import freeze
from nst_data.review.picks import write_pick_list
from nst_data.settings import PickSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.review_table import hashes_by_reason, read_review
from nst_data.tables.schema import review_schema
from nst_train.features.picking import pick
from nst_train.labeling.label import label


def test_a_frozen_review_has_each_settled_answer_and_is_known_by_them(labeled_images):
    store, rows = labeled_images
    ann, bob = AnswerLog(store, "tiny", "ann"), AnswerLog(store, "tiny", "bob")
    ann.append(*rows[0], class_name="bee", picked_by="random", seen_in="tiny@gen-1")
    ann.append(*rows[1], excluded="none of these")
    bob.append(*rows[2], excluded="unusable")
    bob.append(*rows[0], class_name="bee", picked_by="margin")
    review = freeze(store, "tiny")
    assert review.ref == "tiny@review-1"
    assert review.verify() == []
    (file,) = review.folder.glob("review/*.parquet")
    table = pq.read_table(file)
    assert Features.from_arrow_schema(table.schema) == Features.from_arrow_schema(review_schema(["ant", "bee", "cat"]))
    by_hash = {row["image_hash"]: row for row in table.to_pylist()}
    first = by_hash[rows[0][0]]
    assert (first["key"], first["label"], first["excluded"]) == (rows[0][1], 1, None)
    assert (first["picked_by"], first["seen_in"], first["reviewers"]) == ("random", "tiny@gen-1", ["ann", "bob"])
    assert by_hash[rows[1][0]]["label"] is None
    reasons = {"answered": {rows[0][0]}, "none_of_these": {rows[1][0]}, "unusable": {rows[2][0]}}
    assert hashes_by_reason(review) == reasons
    counts = review.manifest.counts
    assert counts.reviewers == {"ann": 2, "bob": 2}
    assert counts.per_class == {"ant": 0, "bee": 1, "cat": 0}
    assert freeze(store, "tiny").ref == "tiny@review-1"
    bob.append(*rows[3], class_name="cat")
    assert freeze(store, "tiny").ref == "tiny@review-2"
    assert [version.ref for version in store.versions("tiny")] == ["tiny@review-1", "tiny@review-2", "tiny@gen-1", "tiny@gen-1.1"]
    assert store.open("tiny").ref == "tiny@gen-1.1"
    assert store.open("tiny", "review").ref == "tiny@review-2"


def test_an_anonymous_review_names_no_reviewer(labeled_images):
    store, rows = labeled_images
    AnswerLog(store, "tiny", "Zoe-Q").append(*rows[0], class_name="bee")
    review = freeze(store, "tiny", anonymous=True)
    (file,) = review.folder.glob("review/*.parquet")
    assert "reviewers" not in pq.read_schema(file).names
    texts = [path.read_text() for path in review.folder.iterdir() if path.suffix in (".json", ".md")]
    assert len(texts) == 2
    assert not any("Zoe-Q" in text for text in texts)
    assert review.manifest.request.inputs.answers.ref == "answers of 1 reviewer"
    assert freeze(store, "tiny").ref == "tiny@review-2"


def test_disputed_images_are_named_until_they_are_settled(labeled_images):
    store, rows = labeled_images
    AnswerLog(store, "tiny", "ann").append(*rows[0], class_name="bee")
    bob = AnswerLog(store, "tiny", "bob")
    bob.append(*rows[0], excluded="none of these")
    with pytest.raises(NstError, match=rf"^tiny: 1 image.*'{rows[0][1]}' \(ann: bee, bob: none of these\).*undo"):
        freeze(store, "tiny")
    bob.append(*rows[0], undo=True)
    assert freeze(store, "tiny").manifest.counts.answered == 1


def test_what_cannot_be_frozen_is_one_line(labeled_images):
    store, rows = labeled_images
    with pytest.raises(NstError, match=r"reviews/tiny:.*no answer about tiny yet.*the review page$"):
        freeze(store, "tiny")
    AnswerLog(store, "tiny", "ann").append(*rows[0], class_name="dog")
    with pytest.raises(NstError, match=rf"ann's answer about '{rows[0][1]}':.*'dog'.*ant, bee, cat; answer it again"):
        freeze(store, "tiny")
    assert store.unfinished() == []


def test_answers_about_a_labeled_set_have_its_classes_without_a_corpus(labeled_images):
    store, rows = labeled_images
    AnswerLog(store, "photos", "ann").append(*rows[0], class_name="wasp")
    assert freeze(store, "photos").manifest.class_names == ["wasp"]
    AnswerLog(store, "photos", "ann").append(*rows[1], class_name="ant")
    assert freeze(store, "photos", class_names=["wasp", "ant"]).manifest.class_names == ["wasp", "ant"]


def label_with_other_classes(store, pool, folder):
    return label(store, "tiny", write_teacher(folder, ["ant", "shoe"]), open_source(str(pool)), SETTINGS, run=RUN, progress=Progress())


def test_labels_of_other_classes_do_not_make_the_answers_unusable(labeled_images, tiny_store, tmp_path):
    store, rows = labeled_images
    assert label_with_other_classes(store, tiny_store[2], tmp_path / "two").ref == "tiny@gen-2"
    (tmp_path / "bee.csv").write_text(f"image_hash,class\n{rows[0][0]},bee\n{rows[1][0]},ant\n")
    assert import_answers(store, "tiny", tmp_path / "bee.csv") == (2, 0)
    said = RecordingProgress()
    assert freeze(store, "tiny", progress=said).manifest.class_names == ["ant", "bee", "cat"]
    assert said.lines == ["tiny: tiny@gen-2 lacks classes that were answered; the review has those of tiny@gen-1.1"]
    (tmp_path / "typo.csv").write_text(f"image_hash,class\n{rows[2][0]},bee\n{rows[3][0]},be\n")
    with pytest.raises(NstError, match=r"row 2: .*no class 'be'; expected one of ant, bee, cat$"):
        import_answers(store, "tiny", tmp_path / "typo.csv")
    (tmp_path / "shoe.csv").write_text(f"image_hash,class\n{rows[2][0]},shoe\n")
    assert import_answers(store, "tiny", tmp_path / "shoe.csv") == (1, 0)
    message = r"tiny@gen-2 has other classes than tiny@gen-1\.1: it lacks 'bee'; `store\.remove\('tiny@gen-2'\)`[^;]*$"
    with pytest.raises(NstError, match=message):
        freeze(store, "tiny")


def test_a_list_in_parquet_is_imported_once_it_is_filled_in(tiny_store, tmp_path):
    store, file = Store(shutil.copytree(tiny_store[0].root, tmp_path / "store")), tmp_path / "picks.parquet"
    write_pick_list(pick(store, "tiny@gen-1", PickSettings(by="random", number=3)), file)
    assert import_answers(store, "tiny", file) == (0, 0)
    names = store.open("tiny@gen-1").manifest.class_names
    pl.read_parquet(file).with_columns(pl.Series("class", [names[0], None, names[1]], dtype=pl.String)).write_parquet(file)
    assert import_answers(store, "tiny", file) == (2, 0)
    pl.read_parquet(file).drop("class", "excluded").write_parquet(file)
    with pytest.raises(NstError, match=r"picks\.parquet: expected columns `image_hash` or `key`, and `class` or `excluded`; found key,"):
        import_answers(store, "tiny", file)


def test_answers_about_a_labeled_set_may_have_nearly_the_name_of_a_corpus(labeled_images, tmp_path):
    store, rows = labeled_images
    (tmp_path / "more.csv").write_text(f"image_hash,class\n{rows[1][0]},wasp\n")
    for name in ("tiny-set", "tiny2", "small"):
        assert import_answers(store, name, tmp_path / "more.csv") == (1, 0)
    with pytest.raises(UsageError, match=r"^tny: .*did you mean tiny\?$"):
        import_answers(store, "tny", tmp_path / "more.csv")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_what_was_exported_is_imported_elsewhere(labeled_images, tmp_path, suffix):
    store, rows = labeled_images
    odd_key = '=a "b", c\n'
    log = AnswerLog(store, "tiny", "ann")
    log.append(*rows[0], class_name="bee", picked_by="random", seen_in="tiny@gen-1")
    log.append("f" * 32, odd_key, excluded="none of these")
    file = tmp_path / f"answers{suffix}"
    assert export_answers(store, "tiny", file) == 2
    assert "json" in suffix or "'=a" in file.read_text()  # no formula for a spreadsheet to run
    assert import_answers(store, "other", file, reviewer="bob") == (2, 0)
    assert import_answers(store, "other", file, reviewer="bob") == (0, 2)
    here, there = resolve_answers(store, "tiny").answers, resolve_answers(store, "other").answers
    assert [(one.key, one.verdict, one.picked_by, one.seen_in) for one in here.values()] == [
        (one.key, one.verdict, one.picked_by, one.seen_in) for one in there.values()
    ]
    freeze(store, "tiny")
    assert export_answers(store, "tiny@review-1", file.with_stem("frozen")) == 2


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_file_that_somebody_filled_in_is_never_overwritten(labeled_images, tmp_path, suffix):
    store, rows = labeled_images
    AnswerLog(store, "tiny", "ann").append(*rows[0], class_name="bee")
    file = tmp_path / f"answers{suffix}"
    assert [export_answers(store, "tiny", file) for _ in range(2)] == [1, 1]  # the same again is no harm
    file.write_text("hand work")
    with pytest.raises(UsageError, match=rf"answers\{suffix}: already exists with other content and is not overwritten; name another file"):
        export_answers(store, "tiny", file)
    assert file.read_text() == "hand work"


def test_rows_may_name_images_by_key_alone(labeled_images, tmp_path):
    store, rows = labeled_images
    file = tmp_path / "by hand.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("key", "class", "excluded"), (rows[0][1], "cat", ""), (rows[1][1], "", "unusable")])
    assert import_answers(store, "tiny", file) == (2, 0)
    assert {image: one.text for image, one in resolve_answers(store, "tiny").answers.items()} == {rows[0][0]: "cat", rows[1][0]: "unusable"}


def test_an_image_that_was_answered_before_joins_the_random_draw(labeled_images, tmp_path):
    store, rows = labeled_images

    def imported(name, by, some):
        (tmp_path / name).write_text("".join(["key,class,by\n", *(f"{key},bee,{by}\n" for _, key in some)]))
        return import_answers(store, "tiny", tmp_path / name)

    assert imported("doubtful.csv", "margin", rows[:3]) == (3, 0)
    assert imported("drawn.csv", "random", rows[1:6]) == (5, 0)
    assert imported("drawn.csv", "random", rows[1:6]) == (0, 5)
    assert imported("doubtful.csv", "margin", rows[:3]) == (0, 3)
    drawn = read_review(freeze(store, "tiny")).filter(picked_by="random")
    assert set(drawn["image_hash"]) == {image_hash for image_hash, _ in rows[1:6]}


def test_a_list_of_json_lines_may_be_filled_in_partly(labeled_images, tmp_path):
    store, rows = labeled_images
    open_row, file = {"key": rows[0][1], "class": None, "excluded": None}, tmp_path / "picks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (open_row, open_row | {"key": rows[1][1], "class": "bee"})))
    assert import_answers(store, "tiny", file) == (1, 0)


def test_rows_that_disagree_about_an_image_are_both_named_and_nothing_is_added(labeled_images, tmp_path):
    store, rows = labeled_images
    file, (image_hash, key) = tmp_path / "answers.csv", rows[0]
    file.write_text(f"key,image_hash,class\n{key},,ant\n,{image_hash},bee\n")
    with pytest.raises(NstError, match=rf"answers\.csv, row 2: .*'bee'.*'{key}'.*answers\.csv, row 1,.*'ant'.*; remove one of them$"):
        import_answers(store, "tiny", file)
    assert not resolve_answers(store, "tiny").answers
    file.write_text(f"key,image_hash,class\n{key},,ant\n,{image_hash},ant\n")
    assert import_answers(store, "tiny", file) == (1, 1)
    assert import_answers(store, "tiny", file) == (0, 2)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"key": "no.png", "class": "ant"}, r"line 1: tiny@gen-1.*'no\.png'.*`image_hash`$"),
        ({"image_hash": "aa", "class": "dog"}, r"line 1:.*no class 'dog'.*ant, bee, cat$"),
        ({"class": "ant"}, r"line 1: names no image.*`image_hash` or `key`$"),
        ({"image_hash": "sha1:ab", "class": "ant"}, r"line 1: `image_hash` is 'sha1:ab'.*32 digits.*`key`$"),
        ({"key": "a"}, r"line 1:.*either a `class` or.*`excluded`$"),
        ({"key": "a", "class": 3}, r"line 1: `class` is 3, expected text$"),
        ({"key": "a", "excluded": "dull"}, r"line 1: `excluded` is 'dull'.*'none of these' or 'unusable'$"),
        (["a"], r"answers\.jsonl:.*\(line 1:.*JSON object, found list\)$"),
    ],
)
def test_a_row_that_cannot_be_taken_is_named_and_nothing_is_added(labeled_images, tmp_path, row, complaint):
    store, _ = labeled_images
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(NstError, match=complaint):
        import_answers(store, "tiny", file)
    assert not resolve_answers(store, "tiny").answers


def test_files_of_another_kind_are_refused(labeled_images, tmp_path):
    store, _ = labeled_images
    with pytest.raises(UsageError, match=r"answers\.xlsx:.*\.csv, \.tsv, \.jsonl, \.json, \.parquet$"):
        import_answers(store, "tiny", tmp_path / "answers.xlsx")
    (tmp_path / "a.csv").write_text("name,label\nx,y\n")
    with pytest.raises(NstError, match=r"a\.csv:.*`image_hash` or `key`.*`class` or `excluded`; found name, label$"):
        import_answers(store, "tiny", tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"b\.csv: no such file.*\.csv, \.tsv, \.jsonl, \.json, \.parquet$"):
        import_answers(store, "tiny", tmp_path / "b.csv")
    with pytest.raises(NstError, match=r"^tiny:.*no answer to export yet$"):
        export_answers(store, "tiny", tmp_path / "c.csv")


def test_a_table_that_was_changed_is_refused(labeled_images):
    store, rows = labeled_images
    AnswerLog(store, "tiny", "ann").append(*rows[0], class_name="bee")
    review = freeze(store, "tiny")
    (file,) = review.folder.glob("review/*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.set_column(2, table.schema.field("label"), [[7]]), file)
    with pytest.raises(NstError, match=r"tiny@review-1"):
        read_review(review)


def test_the_commands_say_what_they_did_and_what_comes_next(labeled_images, tmp_path):
    store, rows = labeled_images
    file, where = tmp_path / "answers.csv", ["--store", str(store.root)]
    lines = [f"{rows[0][1]},bee,random", f"{rows[1][1]},cat,margin", f"{rows[2][1]},,"]
    file.write_text("\n".join(["key,class,by", *lines]) + "\n")

    def run(*arguments, status=0):
        result = CliRunner().invoke(app, [*arguments, *where], catch_exceptions=False)
        assert result.exit_code == status, result.stderr
        return result.stdout if status == 0 else result.stderr

    assert run("review", "import", "tiny", str(file), "--reviewer", "ann").startswith(
        "tiny: 2 answers of ann added, 0 were there already\n"
    )
    elsewhere = tmp_path / "other.csv"
    elsewhere.write_text(f"image_hash,class\n{rows[0][0]},bee\n")
    line = run("review", "import", "tinny", str(elsewhere), status=2)
    assert is_line(line.strip(), "nst: tinny: the store has no labels or answers …; did you mean tiny?")
    assert not (store.root / "reviews" / "tinny").exists()
    said = run("review", "import", "photographs", str(elsewhere))
    assert mentions(said, "warning: the store has no labels called 'photographs', …")
    assert "\nphotographs: 1 answer of reviewer added" in said
    run("review", "freeze", "photographs")  # which has no labels either
    assert mentions(run("review", "import", "photographs", str(elsewhere)), "warning: the store has no labels called 'photographs', …")
    assert json.loads(run("review", "freeze", "tiny", "--json"))["counts"]["picked_by"] == {"margin": 1, "random": 1}
    assert "tiny@review-1" in run("list")
    assert "2 images answered, 2 with a class" in run("list", "tiny")
    assert run("verify", "tiny@review-1") == "tiny@review-1: 1 file verified\n"
    assert "answers of ann" in run("show", "tiny@review-1")
    shown = run("show", "tiny@gen-1", "--truth", "tiny@review-1")
    assert "estimated accuracy over all images" in shown
    assert "from 1 picked at random" in " ".join(shown.split())
    assert json.loads(run("show", "tiny@gen-1", "--truth", "tiny@review-1", "--json"))["quality"]["review"]["answered"] == 2
    assert mentions(run("show", "tiny@review-1", "--truth", "tiny@review-1", status=2), "--truth … labels of a teacher; name a generation")
    assert "dropped: 2 answered" in run("balance", "tiny@gen-1", "--reviews", "tiny@review-1", "--min-confidence", "0")
    assert run("review", "export", "tiny@review-1", str(tmp_path / "out.jsonl")) == f"{tmp_path / 'out.jsonl'}: 2 answers\n"
    AnswerLog(store, "tiny", "bob").append(*rows[0], class_name="ant")
    assert mentions(run("review", "freeze", "tiny", status=1), f"nst: tiny: 1 image …: '{rows[0][1]}' (ann: bee, bob: ant); ")
    assert mentions(run("remove", "tiny@review-1", status=1), "is the parent of tiny@gen-1.2; remove …")
    assert "expected a generation" in run("balance", "tiny@review-1", status=2)


def test_the_group_without_a_command_shows_its_help_and_no_empty_line():
    shown = CliRunner().invoke(app, ["review"])
    assert shown.exit_code == 2
    assert "freeze" in shown.output
    assert "nst: ;" not in shown.output


def test_label_studios_answers_are_imported_and_what_was_labeled_there_comes_back(labeled_images, tmp_path):
    store, rows = labeled_images
    export(store, "tiny@gen-1", tmp_path / "out", to="label-studio", progress=Progress())
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    for task, answer in zip(tasks, ["bee", "unusable"], strict=False):
        task["annotations"] = [{"result": [{"type": "choices", "value": {"choices": [answer]}}], "was_cancelled": False}]
    file = tmp_path / "annotated.json"
    file.write_text(json.dumps(tasks))
    assert import_answers(store, "tiny", file) == (2, 0)
    assert {image: one.text for image, one in resolve_answers(store, "tiny").answers.items()} == {rows[0][0]: "bee", rows[1][0]: "unusable"}
    tasks[0]["annotations"] += [{"result": [{"type": "choices", "value": {"choices": ["cat"]}}]}]
    file.write_text(json.dumps(tasks))
    with pytest.raises(NstError, match=r"annotated\.json: task.*one answer, found 'bee', 'cat'"):
        import_answers(store, "tiny", file)
    file.write_text('[{"key": "a", "label": "bee"}]')
    with pytest.raises(NstError, match=r"annotated\.json:.*Label Studio's.*annotations, found key, label"):
        import_answers(store, "tiny", file)


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_a_list_whose_name_would_be_a_pattern_is_not_taken_for_another(tiny_store, tmp_path, kind):
    store, *_ = tiny_store
    picks = pick(store, "tiny@gen-1", PickSettings(by="random", number=2))
    write_pick_list(picks, tmp_path / f"picks1{kind}")
    filled = tmp_path / f"picks[1]{kind}"
    filled.write_bytes(b"filled in by a person")
    with pytest.raises(UsageError, match="already exists with other content"):
        write_pick_list(picks, filled)
    assert filled.read_bytes() == b"filled in by a person"


def test_a_store_whose_path_would_be_a_pattern_reads_its_own_answers(labeled_images, tmp_path):
    _, rows = labeled_images
    for folder, name in (("run1", "ant"), ("run[1]", "bee")):
        store = Store(tmp_path / folder / "store")
        AnswerLog(store, "tiny", "ann", class_names=["ant", "bee", "cat"]).append(*rows[0], class_name=name)
        review = freeze(store, "tiny", class_names=["ant", "bee", "cat"])
        assert read_review(review)["label"].to_list() == [["ant", "bee"].index(name)]


def test_a_class_called_unusable_comes_back_from_label_studio_as_one(tmp_path):
    store = Store(tmp_path / "store")
    seal_generation(store, [label_row(0, b"x", 1, 0.9, key="a.png", classes=2)], name="tiny", names=["unusable", "usable"])
    task = {"id": 1, "data": {"image": "/data/upload/1/a.png", "key": "a.png"}}
    task["annotations"] = [{"result": [{"type": "choices", "value": {"choices": ["unusable"]}}]}]
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    import_answers(store, "tiny", tmp_path / "tasks.json")
    (answer,) = resolve_answers(store, "tiny").answers.values()
    assert (answer.class_name, answer.excluded) == ("unusable", None)


def test_a_list_of_picks_says_how_its_answers_are_imported_and_whether_it_has_any(tiny_store, tmp_path):
    store, file = Store(shutil.copytree(tiny_store[0].root, tmp_path / "store")), tmp_path / "picks.csv"

    def run(*words):
        return CliRunner().invoke(app, [*words, "--store", str(store.root)], catch_exceptions=False).stdout

    picked = run("pick", "tiny@gen-1", "--by", "random", "--number", "3", "--output", str(file))
    assert f"then: nst review import tiny {file} --reviewer NAME" in " ".join(picked.split())
    unfilled = run("review", "import", "tiny", str(file), "--reviewer", "ann")
    assert "has no answers yet: fill in `class` or `excluded`" in unfilled
    assert "nst review freeze" not in unfilled
