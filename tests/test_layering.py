import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODELS = {"torch", "torchvision", "timm", "transformers", "accelerate"}
FOLDERS = {"nst_data": "nst_data", "nst_train": "nst_train", "nst_cli": "cli"}
FORBIDDEN = {"nst_data": {"nst_train", "nst_cli"} | MODELS, "nst_train": {"nst_cli"}, "nst_cli": MODELS}


def imported(code):
    """(top-level package, line) of every absolute import in a module, also those inside functions."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((name.name.partition(".")[0], node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, "a relative import stays in its package"


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_run_from_the_command_line_to_training_to_data(package):
    files = sorted((ROOT / FOLDERS[package]).rglob("*.py"))
    assert files
    found = [(name, f"{file.name}:{line}") for file in files for name, line in imported(file.read_text())]
    assert [(name, place) for name, place in found if name in FORBIDDEN[package]] == []


def test_an_import_inside_a_function_is_seen():
    assert list(imported("import os.path\ndef f():\n    from torch.nn import Module\n")) == [("os", 1), ("torch", 3)]


def modules_after(code):
    """Top-level packages in sys.modules after some code has run in a fresh process."""
    code = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_no_heavy_package():
    run = "sys.argv = ['nst', '--help']\nfrom nst_cli.main import run\ntry:\n    run()\nexcept SystemExit as end:\n    assert not end.code"
    there = modules_after(run)
    assert "nst_cli" in there
    assert there & (MODELS | {"datasets", "polars", "pyarrow", "pandas", "PIL", "matplotlib", "huggingface_hub"}) == set()


def test_the_data_engine_imports_no_network_library():
    names = sorted(f"nst_data.{file.stem}" for file in (ROOT / "nst_data").glob("[!_]*.py"))
    there = modules_after(f"import {', '.join(names)}")
    assert "datasets" in there
    assert there & MODELS == set()


def test_settings_are_read_without_a_network_library():
    assert modules_after("import nst_train.settings") & MODELS == set()


def seconds_of_help():
    """User and system time of one `nst --help`."""
    process = subprocess.Popen([Path(sys.executable).with_name("nst"), "--help"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_takes_less_than_three_tenths_of_a_second():
    assert min(seconds_of_help() for _ in range(5)) < 0.3
