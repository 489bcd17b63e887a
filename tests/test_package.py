"""What is installed from a wheel or an sdist: declared, complete and able to work away from the checkout."""

import ast
import importlib.metadata as installed
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import TINY, write_tiny_images, write_tiny_recipe
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {name: needed for name, needed in PROJECT["optional-dependencies"].items() if name not in ("audit", "dev", "docs", "release")}
COMES_WITH = {"aiohttp": "gcsfs", "botocore": "s3fs", "onnx_ir": "onnxscript", "pydantic_core": "pydantic"}  # each is part of the other
MADE_HERE = ("build", "*.egg-info", "nst-store", ".*", "__pycache__")


def names(requirements):
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def imports(folder):
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def import_names(distribution):
    if listed := installed.distribution(distribution).read_text("top_level.txt"):
        return set(listed.split())
    tops = {file.parts[0].partition(".")[0] for file in installed.files(distribution) if len(file.parts) > 1 or file.suffix == ".py"}
    return tops - {"", "..", "__pycache__"}


def test_every_package_that_is_imported_is_declared_and_every_declared_one_is_used():
    imported = {name for folder in ("nst_data", "nst_train", "cli", "examples") for name in imports(folder)}
    needed = {COMES_WITH.get(name, name) for name in imported - sys.stdlib_module_names if not name.startswith("nst_")}
    runtime = names(PROJECT["dependencies"])
    declared = runtime | names(one for extra in EXTRAS.values() for one in extra)
    brought = {name: import_names(name) for name in declared}
    assert needed - set().union(*brought.values()) == set()
    assert {name for name in runtime if not brought[name] & needed} == set()


def loaded(path):
    about = importlib.util.spec_from_file_location(f"nst_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(about)
    about.loader.exec_module(module)
    return module


def test_links_of_the_readme_lead_into_the_repository_or_are_text():
    text = "[a](docs/a.md#b) [c](https://c.example/d) [e](#f) ![g](docs/g.png)"
    absolute = loaded("setup.py").absolute
    assert absolute(text, "https://h.example/i/") == (
        "[a](https://h.example/i/blob/main/docs/a.md#b) [c](https://c.example/d) [e](#f) ![g](https://h.example/i/raw/main/docs/g.png)"
    )
    assert absolute(text, None) == "a [c](https://c.example/d) [e](#f) g"


def test_the_version_is_the_same_wherever_it_is_named():
    assert set(loaded(".ci/release.py").versions(ROOT).values()) == {PROJECT["version"]}


def test_a_release_asks_for_one_version_a_clean_checkout_and_a_new_tag(tmp_path):
    problems = loaded(".ci/release.py").problems

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0\n\n## 1.1.0\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    assert problems(tmp_path) == []
    git("tag", "v1.2.0")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 1.2.0\n")
    versions, changed, tag = problems(tmp_path)
    assert "CITATION.cff has 1.2.0, CHANGELOG.md has Unreleased" in versions
    assert changed.endswith("commit or remove them:\n M CHANGELOG.md")
    assert "v1.2.0 exists" in tag
    git("clone", "--quiet", "--bare", ".", "origin.git")  # it has the tag
    git("checkout", "--quiet", "CHANGELOG.md")
    git("tag", "--delete", "v1.2.0")
    git("remote", "add", "origin", "origin.git")
    new, tag = problems(tmp_path)
    assert (new.startswith("the checkout has changes or new files"), "origin has the tag v1.2.0" in tag) == (True, True)
    git("remote", "set-url", "origin", "nowhere.git")
    assert problems(tmp_path)[1].startswith("origin cannot be asked for its tags")


def run(*command, cwd, **environment):
    """Its output, after it has succeeded; it sees nothing of this checkout or of the tests' environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def runtime_distributions(wheel):
    """What installing a wheel without extras brings: the distributions of this environment that its requirements name, and theirs."""
    metadata = next(text for name, text in contents(wheel).items() if name.endswith(".dist-info/METADATA")).decode()
    waiting = [(Requirement(line), "") for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)]
    found, asked = {}, set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(installed.version(name), prereleases=True), str(requirement)
        found[name] = installed.distribution(name)
        for wanted in {"", *requirement.extras} - {known for one, known in asked if one == name}:
            asked.add((name, wanted))
            waiting += [(Requirement(one), wanted) for one in found[name].requires or ()]
    return found


def link_into(site_packages, distributions):
    for distribution in distributions:
        tops = {file.parts[0] for file in distribution.files if not file.name.endswith(".pth")}
        for top in tops - {"..", "__pycache__", "bin"}:
            place = site_packages / top
            if not place.exists():
                place.symlink_to(distribution.locate_file(top))


@pytest.mark.slow
def test_a_wheel_stands_alone_and_the_sdist_builds_the_same_one(tmp_path):
    tree, dist, again = tmp_path / "tree", tmp_path / "dist", tmp_path / "again"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*MADE_HERE))
    building = [sys.executable, "-m", "build", "--no-isolation"]
    said = run(*building, "--outdir", dist, tree, cwd=tmp_path)  # the sdist, and the wheel from it
    assert "warning" not in re.sub(r"warning: (build_py|install_lib): byte-compiling is disabled, skipping\.", "", said).casefold()
    shutil.rmtree(tree / "build", ignore_errors=True)
    run(*building, "--wheel", "--outdir", again, tree, cwd=tmp_path)
    (wheel,), (sdist,), (direct,) = dist.glob("*.whl"), dist.glob("*.tar.gz"), again.glob("*.whl")
    assert contents(wheel) == contents(direct)
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=tmp_path)
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed >= {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "setup.py", "docs/training.md", "tests/conftest.py"}

    inside = contents(wheel)
    expected = {"nst_cli/examples/digits.yaml", "nst_cli/look/page/index.html", "nst_data/cards/edition.md.jinja", "nst_data/py.typed"}
    assert inside.keys() >= expected
    assert not [name for name in inside if name.startswith(("tests/", "cli/", "examples/", "benchmarks/"))]
    page = next(text for name, text in inside.items() if name.endswith("METADATA")).decode()
    assert re.findall(r"\]\((?!https?://)[^)]*\)", page) == []
    assert {"Name: nst", "Author: The nst maintainers", "License-Expression: Apache-2.0"} <= set(page.splitlines())

    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    link_into(next((tmp_path / "venv" / "lib").glob("python*/site-packages")), runtime_distributions(wheel).values())
    absent = ["pytest", "duckdb", "pyspark", "ray", "starlette", "uvicorn", "onnx", "open_clip", "hypothesis", "av", "s3fs"]
    elsewhere = write_tiny_images(tmp_path / "elsewhere")
    program = f"""
import importlib.util, nst_cli, nst_data, nst_train
assert {str(tmp_path)!r} in nst_cli.__file__ and {str(tmp_path)!r} in nst_data.__file__ and {str(tmp_path)!r} in nst_train.__file__
print(nst_data.__version__, [name for name in {absent} if importlib.util.find_spec(name)])
"""
    assert run(python, "-c", program, cwd=elsewhere) == f"{PROJECT['version']} []\n"

    nst = python.with_name("nst")
    assert run(nst, "--version", cwd=elsewhere) == f"nst {PROJECT['version']}\n"
    assert "demo" in run(nst, "--help", cwd=elsewhere)
    run(nst, "init", "--labeled", "labeled", "--pool", "pool", "--test", "test", "--model", "test_resnet.r160_in1k", cwd=elsewhere)
    recipe = write_tiny_recipe(elsewhere, generations=[TINY, {**TINY, "ratio": 1}], select={"min_confidence": 0, "per_class": 5})
    run(nst, "run", recipe, cwd=elsewhere)
    assert "bugs" in (elsewhere / "nst-store/corpora/bugs/gen-1/README.md").read_text("utf-8")  # made from a template
    missing = subprocess.run([nst, "look", "bugs@gen-1"], cwd=elsewhere, capture_output=True, text=True)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "nst[look]" in missing.stderr
