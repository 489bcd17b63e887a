"""What a terminal cannot show, a reader does not want, or a disk does not take never fails what is done."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import picture
from nst_cli import main, output
from wording import mentions

from nst_data import progress as progress_module
from nst_data.progress import BarProgress, LineProgress

NST = [sys.executable, "-c", "from nst_cli.main import run; run()"]
ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


def nst(*arguments, env=None, **options):
    return subprocess.run([*NST, *map(str, arguments)], text=True, timeout=120, env=os.environ | (env or {}), **options)


@pytest.mark.parametrize("env", ASCII)
def test_names_that_the_terminal_lacks_are_escaped(tmp_path, env):
    done = nst("list", "櫻", "--store", tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert r"no versions called \u6afb yet" in done.stdout.replace(r"\udce6\udcab\udcbb", r"\u6afb")  # bytes that the locale cannot read


def test_a_name_that_is_no_text_is_shown_by_its_bytes(tmp_path):
    done = nst("list", b"\xff".decode("utf-8", "surrogateescape"), "--store", tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert r"no versions called \udcff yet" in done.stdout


def test_a_result_that_no_disk_takes_fails_a_command_that_only_shows(tmp_path):
    with open("/dev/full", "w") as full:
        done = nst("list", "--json", "--store", tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == "nst: standard output could not be written: No space left on device\n"


def test_a_reader_who_has_seen_enough_is_no_failure(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = nst("list", "--json", "--store", tmp_path, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_output_is_no_file_that_is_opened_next(tmp_path):
    script = f'exec "$@" >&- 2>&-; {sys.executable}'
    code = (
        "import os, sys\nfrom nst_cli.output import open_output\nopen_output()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\nassert file.fileno() > 2\nos.write(1, b'of a library')\nprint('of ours')\n"
    )
    done = subprocess.run(["sh", "-c", script, "sh", sys.executable, "-c", code], timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_result_that_no_disk_takes_is_said_of_a_command_whose_work_is_done(monkeypatch, capsys):
    with output._SafeStream(open("/dev/full", "wb"), encoding="utf-8", line_buffering=True) as full:
        monkeypatch.setattr(sys, "stdout", full)
        print("made")
        main._report_lost_output(is_failure=False)
        print("more")
        assert output.lost_output() == "No space left on device"
        monkeypatch.undo()
    assert capsys.readouterr().err == "nst: standard output could not be written: No space left on device; the work itself has completed\n"


def test_the_standard_streams_of_another_program_stay_as_they_are():
    own = io.StringIO()
    assert output._safe_stream(own) is own


@pytest.mark.slow
@pytest.mark.parametrize("env", ASCII[:1])
def test_class_names_that_the_terminal_lacks_pass_every_command(tmp_path, env):
    for label, kind in enumerate(("rose", "櫻", "🌻")):
        (tmp_path / "labeled" / kind).mkdir(parents=True)
        for index in range(4):
            picture(label, index).save(tmp_path / "labeled" / kind / f"{index}.png")
    labeled, store = tmp_path / "labeled", ["--store", tmp_path / "store"]
    network = ["--model", "test_resnet", "--image-size", 16, "--epochs", 1, "--batch-size", 4, "--workers", 0, "--tracker", "none"]
    for words in (
        ["train", "--labeled", labeled, "--name", "net", *network],
        ["label", labeled, "--teacher", "net", "--corpus", "flowers"],
        ["balance", "flowers", "--min-confidence", 0, "--per-class", 20],
        ["evaluate", "net", "--data", labeled],
        ["show", "flowers@gen-1.1"],
    ):
        done = nst(*words, *store, env=env, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
    shown = json.loads(nst("show", "flowers@gen-1.1", "--json", *store, env=env, capture_output=True).stdout)
    assert "櫻" in json.dumps(shown, ensure_ascii=False)
    refused = nst("train", "--labeled", labeled, "--name", "other", *network, *store, env=ASCII[1], capture_output=True)
    assert refused.returncode == 1
    assert mentions(refused.stderr, "UTF-8; … ascii here: set PYTHONUTF8=1")


def test_a_stop_is_not_waited_for_longer_than_some_seconds():
    code = (
        "import os, signal, threading, time\n"
        "from nst_cli import main\n"
        "from nst_train.interruption import Interrupted\n"
        "main.MAX_WAIT_SECONDS = 0.2\n"
        "signal.signal(signal.SIGTERM, main._stop)\n"
        "stuck = threading.Thread(target=time.sleep, args=(60,))\n"  # such as a read that never comes back; Python waits for it at its end
        "stuck.start()\n"
        "try:\n    signal.raise_signal(signal.SIGTERM)\nexcept Interrupted:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "nst: interrupted by SIGTERM; finished work is kept; the same command resumes\n"


def test_a_second_ctrl_c_waits_for_nothing_and_shows_no_traceback():
    code = (
        "import signal, threading, time\n"
        "from nst_cli import main\n"
        "from nst_train.interruption import Interrupted\n"
        "signal.signal(signal.SIGINT, main._stop)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept Interrupted:\n    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=15)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "nst: interrupted; finished work is kept; the same command resumes\n"


NAME = "a\x1b[2Jb\x9b31m\u202e.png"
ESCAPED = r"a\x1b[2Jb\x9b31m\u202e.png"


def test_what_several_steps_meet_is_said_once(capsys):
    first, second = LineProgress(), LineProgress()
    for progress in (first, first, second):
        progress.say_once("photos: skipped 1 file: 1 .heic")
    assert capsys.readouterr().err.count("skipped") == 2


@pytest.mark.parametrize(("every", "lines"), [(-1, ["2/4", "4/4"]), (100, ["4/4"])])
def test_the_end_of_long_work_is_printed_once(capsys, monkeypatch, every, lines):
    monkeypatch.setattr(progress_module, "LINE_EVERY_SECONDS", every)
    with LineProgress().task("label", 4, "images") as task:
        task.advance(2)
        task.advance(2, "done")
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == lines
    with LineProgress().task("label", 0, "images"):
        pass
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("progress", [LineProgress(), BarProgress()])
def test_no_rate_is_shown_of_work_that_was_done_before(monkeypatch, progress):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
    terminal.isatty = lambda: True
    with progress.task("label bugs@gen-1", 240, "images", 240) as task:
        task.advance(0)
    assert "240/240 images" in terminal.getvalue()
    assert "/s" not in terminal.getvalue()


@pytest.mark.parametrize("progress", [LineProgress(), BarProgress()])
def test_bytes_are_shown_as_megabytes(monkeypatch, progress):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
    terminal.isatty = lambda: True
    with progress.task("push bugs@gen-1", 2_345_678_901, "bytes", 12_345_678) as task:
        task.advance(1_000_000_000)
    assert "1,012.3/2,345.7 MB" in terminal.getvalue()
    assert "MB/s" in terminal.getvalue()
    assert "bytes" not in terminal.getvalue()


@pytest.mark.parametrize("progress", [LineProgress(), BarProgress()])
def test_what_a_terminal_would_obey_in_names_of_strangers_is_shown_by_its_code(capsys, progress):
    progress.say(f"left out: {NAME}")
    with progress.task(NAME, 1, "images") as task:
        task.advance(1)
    shown = capsys.readouterr().err
    assert shown.startswith(f"left out: {ESCAPED}\n")
    assert "\x1b[2J" not in shown
    assert ESCAPED in shown.partition("\n")[2]


def test_an_error_about_a_name_of_a_stranger_is_one_line_without_control_characters(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main.app(["label", str(tmp_path / NAME), "--teacher", "x", "--corpus", "y", "--store", str(tmp_path)])
    assert capsys.readouterr().err.startswith(f"nst: {tmp_path}/{ESCAPED}: expected parquet or tar files")


def test_a_long_name_gives_way_to_the_numbers_of_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
    terminal.isatty = lambda: True
    with BarProgress().task("find reviewed images in /home/me/photographs/2021/labeled", 150, "images") as task:
        task.advance(150, "loss 1.103, lr 2.47e-05")
    assert all(one in terminal.getvalue() for one in ("find reviewed", "2021/labeled", " 150/150 images ", "/s ", " left "))


def test_a_terminal_of_80_columns_shows_every_number_of_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal := io.StringIO())
    terminal.isatty = lambda: True
    with BarProgress().task("train flowers-teacher@gen-1", 80_000, "images", 36_000) as task:
        task.advance(800, "loss 1.103, lr 2.47e-05")
    assert "36,800/80,000 images" in terminal.getvalue()
    assert max(len(line) for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "\n", terminal.getvalue()).split("\n")) <= 80
