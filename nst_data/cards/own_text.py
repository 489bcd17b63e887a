"""The user's own text in a card: it is enclosed by two marks and preserved byte for byte whenever the card is rewritten."""

import re
from dataclasses import dataclass
from pathlib import Path

from nst_data.errors import NstError
from nst_data.hub.licenses import split_front_matter

BEGIN, END = "<!-- nst: your own text begins -->", "<!-- nst: your own text ends -->"
TAG = "noisy-student"  # in the front matter of every card written by nst
_HINT = "<!-- The rest of this file is written anew by nst; what you write between the next two lines stays as it is. -->"


@dataclass(frozen=True)
class OwnText:
    """The user's own text, and what was wrong with its marks as half a sentence, if anything."""

    text: str = "\n\n"
    problem: str | None = None

    @property
    def section(self) -> str:
        """The end of a card: the problem, if any, and the text between its marks."""
        note = f"> **Look here:** {self.problem}.\n\n" if self.problem else ""
        return f"\n{note}{_HINT}\n{BEGIN}{self.text}{END}\n"


def own_text(card: str) -> OwnText:
    """Extract the own text from the current card, preserving line ends such as `\\r\\n`.

    If a mark is missing, all text that may be the user's is kept: everything after the first mark, everything before the last one or, in a
    card that nst did not write, all of it.
    """
    _, body = split_front_matter(card)
    begin_mark = re.search(rf"^[ \t]*{re.escape(BEGIN)}", body, re.MULTILINE)
    begin, end = begin_mark.end() if begin_mark else -1, body.rfind(END)
    if 0 <= begin <= end:
        return OwnText(body[begin:end])
    if begin >= 0 > end:
        return OwnText(_with_final_newline(body[begin:]), "the mark that ends your own text was missing; all behind its beginning is kept")
    if end >= 0:
        text = body.rpartition(_HINT)[2] if begin >= 0 else body[:end].rpartition(_HINT)[2]
        return OwnText(
            _with_final_newline(text), "the mark that begins your own text was not where it belongs; all that may be yours is kept"
        )
    if body.strip() and not re.search(rf"^- {TAG}\s*$", card.removesuffix(body), re.MULTILINE):
        return OwnText(_with_final_newline("\n" + body), "this card was not written by nst before; all of its text is kept below")
    return OwnText()


def read_card(folder: Path) -> str:
    """The README.md of a folder with its original line ends; empty if there is none. Raises NstError if it is not UTF-8 text."""
    path = folder / "README.md"
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise NstError(f"{path}: expected text in UTF-8, found other bytes; save it as UTF-8, or move it away for a new one") from None


def _with_final_newline(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
