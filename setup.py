"""What pyproject.toml cannot say: the packages, and README as a page that is read outside the repository.

The packages below `nst_data` and `nst_train` are found; the folder `cli/` installs as `nst_cli`, `examples/` inside it.
"""

import re
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FOUND = ["nst_data", "nst_data.*", "nst_train", "nst_train.*"]
OURS = ["nst_cli", "nst_cli.examples", "nst_cli.look", "nst_cli.look.page"]
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def absolute(markdown: str, repository: str | None) -> str:
    """Markdown whose links to files lead into the repository at an address; where none is known they are text without a link."""

    def link(found: re.Match[str]) -> str:
        image, text, path = found.groups()
        if repository is None:
            return text
        return f"{image}[{text}]({repository.rstrip('/')}/{'raw' if image else 'blob'}/main/{path})"

    return LINK.sub(link, markdown)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    setup(
        packages=[*find_packages(ROOT, include=FOUND), *OURS],
        long_description=absolute((ROOT / "README.md").read_text("utf-8"), project.get("urls", {}).get("Repository")),
        long_description_content_type="text/markdown",
    )
