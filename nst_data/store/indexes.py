"""What is slow to find out about images, kept: in a folder of the store and, where that is at an address, there too for other machines."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nst_data.errors import NstError
from nst_data.store.file_tree import FileTree, MissingError

FOLDER = "runs/indexes"


@dataclass(frozen=True)
class Indexes:
    """Files by names that say what they are of, such as a digest: what has one name is the same wherever it was found out.

    They are in `folder`; `tree` is that of a store at an address, with which files are shared below `FOLDER`.
    """

    folder: Path
    tree: FileTree | None = None

    @classmethod
    def at(cls, place: "Self | Path | None") -> Self | None:
        """Those in a folder; the same for those given already."""
        return cls(place) if isinstance(place, Path) else place

    @property
    def alone(self) -> "Indexes":
        """Those of this machine, for what is the same on no other one, such as times of files."""
        return Indexes(self.folder)

    def find(self, name: str) -> Path | None:
        """Where the file is on this machine, to which it is brought if another one has found it out; None where nobody has."""
        path = self.folder / name
        if not path.exists() and self.tree is not None:
            with suppress(MissingError, OSError):
                self.tree.download(f"{FOLDER}/{name}", path)
        return path if path.exists() else None

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Have the file written and shared. Where that cannot be written to, nothing is kept: it is found out again."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write(self.folder / name)
            self._upload(name)

    def share(self, name: str) -> None:
        """Bring a file of this machine to the address where it is not there."""
        if self.tree is not None:
            with suppress(NstError):
                if self.tree.stat(f"{FOLDER}/{name}") is None:
                    self._upload(name)

    def _upload(self, name: str) -> None:
        if self.tree is not None:
            with suppress(NstError):  # to read a store is enough for much
                self.tree.upload(self.folder / name, f"{FOLDER}/{name}")
