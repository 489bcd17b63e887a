"""The page's files: its HTML template, and the files that it loads."""

from functools import cache
from pathlib import Path

import jinja2

PAGE = Path(__file__).parent / "page"
TYPES = {".js": "text/javascript", ".css": "text/css", ".png": "image/png", ".svg": "image/svg+xml"}


@cache
def template() -> jinja2.Template:
    """The template of the page's HTML."""
    loader = jinja2.FileSystemLoader(PAGE)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template("index.html")


@cache
def page_files() -> tuple[str, ...]:
    """The names of the files that the page's HTML loads."""
    return tuple(sorted(file.name for file in PAGE.iterdir() if file.suffix in TYPES))
