"""`make release`: checks all that a release must hold, builds it into dist/, and stops before anything leaves this machine.

What is built and installed is the commit, not the folder, so that no file left over from an earlier build comes along.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def versions(root: Path) -> dict[str, str | None]:
    """The version that each file names which has to name it: in the changelog that of the first heading."""
    texts = {name: (root / name).read_text("utf-8") for name in ("CITATION.cff", "CHANGELOG.md")}
    cited = re.search(r"^version: (\S+)$", texts["CITATION.cff"], re.MULTILINE)
    changed = re.search(r"^## (.+)$", texts["CHANGELOG.md"], re.MULTILINE)
    return {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"],
        "CITATION.cff": cited and cited[1],
        "CHANGELOG.md": changed and changed[1],
    }


def problems(root: Path) -> list[str]:
    """Why the commit of a checkout cannot be released, a line each; what is quick to find out."""
    named = versions(root)
    version, found = named["pyproject.toml"], []
    if set(named.values()) != {version}:
        found.append("the versions differ: " + ", ".join(f"{file} has {version or 'none'}" for file, version in named.items()))
    if changed := git(root, "status", "--porcelain", "--untracked-files=all"):
        found.append("the checkout has changes or new files: commit or remove them:\n" + changed)
    if git(root, "tag", "--list", f"v{version}"):
        found.append(f"the tag v{version} exists: a released version never changes; raise the version in the three files")
    if "origin" in git(root, "remote").split():
        try:
            if git(root, "ls-remote", "--tags", "origin", f"refs/tags/v{version}"):
                found.append(f"origin has the tag v{version}: a released version never changes; raise the version in the three files")
        except subprocess.CalledProcessError as error:
            found.append(f"origin cannot be asked for its tags: {error.stderr.strip()}")
    return found


def git(root: Path, *words: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.rstrip()


_OF_THE_CALLER = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # a `make -i` would pass failures over


def step(title: str, *command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints to standard output; ends the release where it fails."""
    print(f"{title} ...", flush=True)
    alone = {name: value for name, value in os.environ.items() if name not in _OF_THE_CALLER}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\nno release: {title} failed")
    return done.stdout


def build(version: str, commit: str, folder: Path) -> list[Path]:
    """The wheel and the sdist of a commit, in dist/, complete and installed once where nothing else is."""
    tree = folder / "tree"
    step("the commit alone", "git", "clone", "--quiet", "--no-checkout", ROOT, tree)
    step(f"its files, at {commit}", "git", "checkout", "--quiet", "--detach", commit, cwd=tree)
    step("python -m build", sys.executable, "-m", "build", "--outdir", ROOT / "dist", tree)
    files = [ROOT / "dist" / f"nst-{version}-py3-none-any.whl", ROOT / "dist" / f"nst-{version}.tar.gz"]
    step("twine check", sys.executable, "-m", "twine", "check", "--strict", *files)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    step("the wheel in a clean environment (some minutes)", python, "-m", "pip", "install", "--quiet", files[0], cwd=folder)
    said = step("nst --version", python.with_name("nst"), "--version", cwd=folder)
    if said != f"nst {version}\n":
        sys.exit(f"no release: the installed wheel says {said!r}, expected 'nst {version}'")
    step("nst --help", python.with_name("nst"), "--help", cwd=folder)
    step("nst schema", python.with_name("nst"), "schema", cwd=folder)
    step("the Python face", python, "-c", "from nst_data import *; from nst_train import *", cwd=folder)
    return files


def main() -> None:
    """Check, build, print what is left to do."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--skip-tests", action="store_true", help="leave out `make test`, for a try")
    skip_tests = options.parse_args().skip_tests
    if found := problems(ROOT):
        sys.exit("\n".join(f"no release: {line}" for line in found))
    version, commit = str(versions(ROOT)["pyproject.toml"]), git(ROOT, "rev-parse", "--short", "HEAD")
    if not skip_tests:
        step("make test", "make", "test")
        if found := problems(ROOT) + [f"HEAD is not {commit} any more"] * (git(ROOT, "rev-parse", "--short", "HEAD") != commit):
            sys.exit("\n".join(f"no release: since the tests began: {line}" for line in found))
    with tempfile.TemporaryDirectory() as folder:
        files = build(version, commit, Path(folder))
    names = " ".join(str(file.relative_to(ROOT)) for file in files)
    print(f"\nnst {version} is ready{' but for `make test`, which was left out' if skip_tests else ''}. Nothing was tagged or uploaded:\n")
    print(f"git tag --annotate v{version} --message 'nst {version}' {commit}")
    print(f"git push origin v{version}")
    print(f"{os.path.relpath(sys.executable, ROOT)} -m twine upload {names}")


if __name__ == "__main__":
    main()
