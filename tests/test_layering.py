import ast
import graphlib
import importlib
import json
import os
import re
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


def parts_of(package):
    """What the wings of a package (its sub-packages) and its top modules import of one another: name to names."""
    modules = {}
    for file in (ROOT / package).rglob("*.py"):
        inside = file.relative_to(ROOT / package)
        name = ".".join([package, *inside.with_suffix("").parts]).removesuffix(".__init__")
        modules[name] = inside.parts[0].removesuffix(".py"), file.read_text()
    graph = {}
    for name, (part, code) in modules.items():
        if name == package:
            continue
        found = graph.setdefault(part, set())
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                wanted = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            elif isinstance(node, ast.Import):
                wanted = [one.name for one in node.names]
            else:
                continue
            found |= {modules[one][0] for one in wanted if one in modules and one != package} - {part}
    return graph


@pytest.mark.parametrize("package", ["nst_data", "nst_train"])
def test_wings_import_one_another_without_a_circle(package):
    graph = parts_of(package)
    wings = {folder.parent.name for folder in (ROOT / package).glob("*/__init__.py")}
    assert wings <= graph.keys()
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("package", ["nst_data", "nst_train"])
def test_each_wing_says_what_it_is_for(package):
    for file in (ROOT / package).glob("*/__init__.py"):
        assert 3 <= len(ast.get_docstring(ast.parse(file.read_text())).splitlines()) <= 6, file


def test_an_import_inside_a_function_is_seen():
    assert list(imported("import os.path\ndef f():\n    from torch.nn import Module\n")) == [("os", 1), ("torch", 3)]


def modules_after(code):
    """Top-level packages in sys.modules after some code has run in a fresh process."""
    code = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ["nst_data", "nst_train"])
def test_the_readme_names_each_wing(package):
    tree = (ROOT / "README.md").read_text("utf-8").partition(f"\n{package}/")[2].partition("\n\n")[0]
    own = tree.partition("\nnst_train/")[0] if package == "nst_data" else tree.partition("\ncli/")[0]
    assert set(re.findall(r"^  (\w+)/ ", own, re.MULTILINE)) == {folder.parent.name for folder in (ROOT / package).glob("*/__init__.py")}


def test_help_imports_no_heavy_package():
    run = "sys.argv = ['nst', '--help']\nfrom nst_cli.main import run\ntry:\n    run()\nexcept SystemExit as end:\n    assert not end.code"
    there = modules_after(run)
    assert "nst_cli" in there
    assert there & (MODELS | {"datasets", "polars", "pyarrow", "pandas", "PIL", "matplotlib", "huggingface_hub"}) == set()


def test_the_data_engine_imports_no_network_library():
    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "nst_data").rglob("[!_]*.py")]
    names = sorted(".".join(file.parts) for file in files)
    assert "nst_data.store.manifest" in names
    there = modules_after(f"import {', '.join(names)}")
    assert "polars" in there
    assert there & MODELS == set()


def test_a_finished_labeling_is_found_without_a_network_library(tiny_store):
    store, _, pool = tiny_store
    words = ["label", str(pool), "--teacher", "tiny-teacher", "--corpus", "tiny", "--batch-size", "4", "--rows-per-shard", "6"]
    run = f"sys.argv = {['nst', *words, '--store', str(store.root), '--json']!r}\nfrom nst_cli.main import run\ntry:\n    run()\n"
    there = modules_after(f"{run}except SystemExit as end:\n    assert not end.code")
    assert "polars" in there
    assert there & MODELS == set()


def test_settings_are_read_without_a_network_library():
    assert modules_after("import nst_train.settings") & MODELS == set()


def seconds_of(*arguments):
    """User and system time of one process."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
def test_help_takes_no_more_than_four_imports_of_typer():
    nst = Path(sys.executable).with_name("nst")
    assert any(seconds_of(nst, "--help") < 4 * seconds_of(sys.executable, "-c", "import typer") for _ in range(10))


def test_every_name_that_examples_and_benchmarks_import_is_there():
    wanted = [
        (file.name, node.module, name.name)
        for folder in ("examples", "benchmarks")
        for file in sorted((ROOT / folder).glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in FOLDERS
        for name in node.names
    ]
    assert len(wanted) > 50
    assert [(file, module, name) for file, module, name in wanted if not hasattr(importlib.import_module(module), name)] == []


def test_shapes_of_arrays_are_said_of_a_class():
    """`NDArray[...]` is one in NumPy up to 2.4 only: jaxtyping refuses the alias of later versions, which Python 3.12 and newer get."""
    files = [file for folder in FOLDERS.values() for file in (ROOT / folder).rglob("*.py")]
    shaped = [
        (node, file)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Tuple)
        and isinstance(node.slice.elts[-1], ast.Constant)
        and isinstance(node.slice.elts[-1].value, str)
    ]
    assert len(shaped) > 50
    assert [f"{file.name}:{node.lineno}" for node, file in shaped if "NDArray" in ast.unparse(node.slice)] == []
