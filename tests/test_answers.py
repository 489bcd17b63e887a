import json
import os
import signal
import subprocess
import sys

import pytest

from nst_data.errors import NstError, UsageError
from nst_data.review.answers import AnswerLog, resolve_answers
from nst_data.store.store import Store

ROSE, TULIP = "aa", "bb"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def log_of(store, reviewer="ann"):
    return AnswerLog(store, "flowers", reviewer, class_names=["rose", "tulip"])


def classes(store):
    return {image: answer.class_name or answer.excluded for image, answer in resolve_answers(store, "flowers").answers.items()}


def test_the_last_answer_of_an_image_counts(store):
    log = log_of(store)
    log.append(ROSE, "1.jpg", class_name="tulip", picked_by="random")
    log.append(TULIP, "2.jpg", excluded="unusable")
    answer = log.append(ROSE, "copy of 1.jpg", class_name="rose")
    assert (answer.reviewer, answer.key) == ("ann", "copy of 1.jpg")
    assert classes(store) == {ROSE: "rose", TULIP: "unusable"}
    lines = (store.root / "reviews/flowers/ann.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(first.pop("time")) == len("2026-11-26T12:00:00.000000+00:00")
    assert first == {"image_hash": ROSE, "key": "1.jpg", "class": "tulip", "excluded": None, "picked_by": "random"}
    assert len(lines) == 3


def test_undo_brings_back_the_answer_before_and_then_none(store):
    log = log_of(store)
    log.append(ROSE, "1.jpg", class_name="rose")
    log.append(ROSE, "1.jpg", excluded="none of these")
    assert log_of(store).append(ROSE, "1.jpg", undo=True).class_name == "rose"
    assert log.append(ROSE, "1.jpg", undo=True) is None
    assert classes(store) == {}
    with pytest.raises(UsageError, match=r"^1\.jpg: there is no answer to undo$"):
        log.append(ROSE, "1.jpg", undo=True)


def test_an_image_is_disputed_until_its_reviewers_agree(store):
    ann, bob = log_of(store), log_of(store, "bob")
    ann.append(ROSE, "1.jpg", class_name="rose")
    ann.append(TULIP, "2.jpg", class_name="tulip")
    bob.append(ROSE, "1.jpg", excluded="none of these")
    found = resolve_answers(store, "flowers")
    assert list(found.answers) == [TULIP]
    assert [(one.reviewer, one.text) for one in found.disputed[ROSE]] == [("ann", "rose"), ("bob", "none of these")]
    bob.append(ROSE, "1.jpg", class_name="rose")
    found = resolve_answers(store, "flowers")
    assert not found.disputed
    assert found.answers[ROSE].reviewer == "bob"


@pytest.mark.parametrize("torn", [b'{"time": "2026', b"\0\0\0\0", b'{"time": "2026\0\0'])
def test_a_torn_last_line_is_nothing_and_the_next_answer_has_a_line_of_its_own(store, torn):
    log = log_of(store)
    log.append(ROSE, "1.jpg", class_name="rose")
    with (store.root / "reviews/flowers/ann.jsonl").open("ab") as file:
        file.write(torn)
    assert classes(store) == {ROSE: "rose"}
    log.append(TULIP, "2.jpg", class_name="tulip")
    log_of(store).append("cc", "3.jpg", class_name="tulip")
    assert classes(store) == {ROSE: "rose", TULIP: "tulip", "cc": "tulip"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not an answer", r"ann\.jsonl, line 2:.*JSON object; delete the line$"),
        ('{"image_hash": "aa", "key": "k"}', r"ann\.jsonl, line 2:.*one class, found another object$"),
        ('{"image_hash": "aa", "key": "k", "class": 3}', r"ann\.jsonl, line 2:.*one class, found another object$"),
        ('{"image_hash": "aa", "key": "k", "excluded": "dull"}', r"ann\.jsonl, line 2:.*one class, found another object$"),
        ("[1]", r"line 2: expected an answer"),
    ],
)
def test_a_line_that_nobody_tore_is_named(store, line, complaint):
    log_of(store).append(ROSE, "1.jpg", class_name="rose")
    with (store.root / "reviews/flowers/ann.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(NstError, match=complaint):
        resolve_answers(store, "flowers")


def test_what_is_no_answer_is_refused_and_not_written(store):
    log = log_of(store)
    with pytest.raises(UsageError, match=r"^.*no class 'oak'.*rose, tulip$"):
        log.append(ROSE, "1.jpg", class_name="oak")
    with pytest.raises(UsageError, match=r"^.*one of a class, `excluded` and `undo`$"):
        log.append(ROSE, "1.jpg", class_name="rose", excluded="unusable")
    with pytest.raises(UsageError, match=r"^`excluded`:.*'none of these' or 'unusable', found 'dull'$"):
        log.append(ROSE, "1.jpg", excluded="dull")
    with pytest.raises(UsageError, match=r"^reviewer's name '\.\./bob': expected ASCII letters"):
        AnswerLog(store, "flowers", "../bob")
    assert not (store.root / "reviews").exists()


def test_an_answer_that_cannot_be_written_says_so(store):
    store.root.mkdir()
    (store.root / "reviews").write_text("a file where a folder must be")
    with pytest.raises(NstError, match=r"ann\.jsonl:.*\(Not a directory\).*answer again$"):
        log_of(store).append(ROSE, "1.jpg", class_name="rose")


@pytest.mark.slow
def test_a_killed_reviewer_loses_no_answer_that_was_given(store):
    code = """if True:
        import sys
        from nst_data.review.answers import AnswerLog
        from nst_data.store.store import Store
        log = AnswerLog(Store(sys.argv[1]), "flowers", "ann")
        for image in range(1_000_000):
            log.append(f"{image:032x}", "k" * 3000, class_name="rose")
            print(image, flush=True)
    """
    given = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                given = max(given, int(line))
                if int(line) >= 50:
                    os.kill(process.pid, signal.SIGKILL)
                    break
        assert set(resolve_answers(store, "flowers").answers) >= {f"{image:032x}" for image in range(given + 1)}
