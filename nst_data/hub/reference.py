"""References to datasets, models and versions on the Hub: the one grammar for all commands, recipes and manifests."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from nst_data.errors import UsageError

_REPO = r"(?:hf-hub:)?(?P<repo>\w[\w.-]*/\w[\w.-]*)"
_REPOSITORY = re.compile(rf"{_REPO}(@(?P<revision>[^@:\s]+))?", re.ASCII)
_DATASET = re.compile(
    rf"{_REPO}(@(?P<revision>refs/(pr|convert)/[^/@:\s]+|[^/@:\s]+))?(:(?P<config>[^/:]+))?(/(?P<split>[\w.-]+))?", re.ASCII
)
_ADDRESS = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:datasets/)?(\w[^/?#]*/[^/?#]+)", re.ASCII)
_FILE_SUFFIXES = (".parquet", ".tar", ".txt", ".tgz", ".gz")


@dataclass(frozen=True)
class HubReference:
    """`owner/name[@revision][:config][/split]`."""

    repo: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Like `parse_dataset`, for user input. Raises UsageError for a URL of the Hub."""
        if address := _ADDRESS.match(text):
            raise UsageError(f"{text}: expected a dataset of the Hub as OWNER/NAME; write {address[1]}")
        return cls.parse_dataset(text)

    @classmethod
    def parse_dataset(cls, text: str) -> Self | None:
        """A reference to a dataset, or None if the text looks like a path. A slash in a revision is written `%2F`: `/` begins the split."""
        match = _DATASET.fullmatch(text)
        if match is None or text.lower().endswith(_FILE_SUFFIXES):
            return None
        revision = match["revision"]
        return cls(match["repo"], revision and unquote(revision), match["config"], match["split"])

    @classmethod
    def parse_repository(cls, text: str) -> Self | None:
        """A reference `owner/name[@revision]` to a model or version, whose revision may contain slashes; None for any other text."""
        match = _REPOSITORY.fullmatch(text)
        return cls(match["repo"], match["revision"]) if match else None

    def __str__(self) -> str:
        parts = [("@", self.revision and quote(self.revision, safe="/" if self.revision.startswith("refs/") else "")), (":", self.config)]
        return self.repo + "".join(mark + part for mark, part in [*parts, ("/", self.split)] if part)
