"""Builds the documentation site into build/site, offline: `make docs`, or `python docs/build.py`.

Pages of docs/ link to files of the repository outside docs/, so that they read well on GitHub too. Zensical knows the files of one folder
only. So the pages are copied to build/docs, each file they link to beside them under `repository/` (a program as a page that shows it),
and the links are turned to these copies. Then `zensical build --strict` checks each link and anchor.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
SETTINGS = re.compile(r"<!-- settings of (\w+)\.(\w+) -->")
SHOWN_AS = {".py": "python", ".yaml": "yaml"}


def staged_path(file: Path) -> Path:
    """Where a file of the repository lies among the staged pages: a page or picture under its path, a program as a page of its own."""
    staged = STAGED / (file.relative_to(DOCS) if file.is_relative_to(DOCS) else Path("repository") / file.relative_to(ROOT))
    return staged.with_name(f"{staged.name}.md") if file.suffix in SHOWN_AS else staged


def stage(file: Path) -> set[Path]:
    """Write the staged copy of a file; returns the files of the repository that it links to."""
    staged = staged_path(file)
    staged.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in SHOWN_AS:
        title, code = file.relative_to(ROOT).as_posix(), file.read_text("utf-8")
        staged.write_text(f"---\nsearch:\n  exclude: true\n---\n\n# {title}\n\n````{SHOWN_AS[file.suffix]}\n{code}````\n", "utf-8")
        return set()
    if file.suffix != ".md":
        shutil.copyfile(file, staged)
        return set()
    linked = set()

    def turned(match: re.Match[str]) -> str:
        there = (file.parent / match[2]).resolve()
        if not there.is_file() or not there.is_relative_to(ROOT):
            return match[0]  # an address; or a broken link, which Zensical names
        linked.add(there)
        return match[1] + Path(os.path.relpath(staged_path(there), staged.parent)).as_posix() + match[3]

    text = LINK.sub(turned, file.read_text("utf-8"))
    staged.write_text(SETTINGS.sub(lambda match: settings_table(match[1], match[2]), text), "utf-8")
    return linked


def settings_table(package: str, name: str) -> str:
    """A row for each setting of a model: its name, default and description."""
    model = getattr(importlib.import_module(package), name)
    rows = [f"| `{field}` | {_default(about.default)} | {_cell(about.description or '')} |" for field, about in model.model_fields.items()]
    return "\n".join([f"{model.__doc__.splitlines()[0]}\n", "| setting | default | |", "|---|---|---|", *rows])


def _default(value: object) -> str:
    if isinstance(value, BaseModel):
        return f"`{type(value).__name__}()`"
    if isinstance(value, tuple):
        return ", ".join(_default(one) for one in value)
    if value is None or value is PydanticUndefined:
        return "" if value is None else "required"
    return f"`{value:.3g}`" if isinstance(value, float) else f"`{value}`"


def _cell(text: str) -> str:
    parts = text.replace("|", "\\|").split("`")  # every second one is code, which shows entities as they stand
    return "`".join(part if at % 2 else part.replace("{", "&#123;").replace("<", "&lt;") for at, part in enumerate(parts))


def main() -> int:
    """Stage all pages and what they link to, and build the site; returns Zensical's exit status."""
    shutil.rmtree(STAGED, ignore_errors=True)
    waiting = {file for file in DOCS.iterdir() if file.suffix in {".md", ".css", ".js"}}
    done: set[Path] = set()
    while waiting:
        done |= waiting
        waiting = set().union(*(stage(file) for file in waiting)) - done
    command = [sys.executable, "-m", "zensical", "build", "--config-file", str(ROOT / "zensical.toml"), "--strict", "--clean"]
    status = subprocess.run(command, cwd=ROOT).returncode
    if status == 0:  # for pages opened from disk, which cannot fetch JSON
        (SITE / "search.js").write_text(f"var __index = {(SITE / 'search.json').read_text('utf-8')};", "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
