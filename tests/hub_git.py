"""The repositories of the test Hub: git's own files, written and read without git.

    <top>/{datasets,models}/<owner>/<name>/.git/objects/ab/...          loose objects: blobs, trees, commits, tags
                                          /.git/refs/{heads,tags}/...   a file with a sha each
                                          /.git/lfs/objects/ab/cd/<sha256>   large files, where git-lfs keeps them
                                          /private, /gated              empty files: who may read it

Any git reads them (`git fsck`, `git log`), and so does a mirror of the Hub. Packed repositories are not read here.
"""

import hashlib
import os
import re
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

LFS_NAMES = re.findall(
    r"\w+",
    "7z arrow bin bz2 ckpt ftz gz h5 joblib lz4 mds mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar safetensors tar"
    " tflite tgz wasm xz zip zst pcm sam raw aac flac mp3 ogg wav bmp gif png tiff jpg jpeg webp mp4 webm",
)
REGULAR_BYTES = 10_000_000  # larger files go to LFS, whatever their name
ATTRIBUTES = "".join(f"*.{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_NAMES).encode()
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")


def belongs_in_lfs(path, size, sample):
    """As the Hub decides: by the name, by the size, or because the first bytes are no text."""
    return size > 0 and (Path(path).suffix[1:] in LFS_NAMES or size > REGULAR_BYTES or b"\0" in sample)


@dataclass(frozen=True)
class Entry:
    """A file or folder of a commit. `size` is the content's; `lfs` is its sha256 where the blob is but a pointer of `blob_size`."""

    path: str
    oid: str
    is_folder: bool = False
    size: int = 0
    lfs: str | None = None
    blob_size: int = 0


class Repository:
    """A git repository below a folder; `commit`, `tag` and `put` write, one writer at a time."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.git = self.folder / ".git"

    @classmethod
    def create(cls, folder, private=False):
        """An empty repository of git's layout."""
        self = cls(folder)
        for name in ("objects", "refs/heads", "refs/tags", "lfs/objects"):
            (self.git / name).mkdir(parents=True)
        (self.git / "HEAD").write_text("ref: refs/heads/main\n")
        (self.git / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = false\n")
        if private:
            (self.folder / "private").touch()
        return self

    def exists(self):
        return self.git.is_dir()

    # Objects.

    def put(self, kind, content):
        """Write an object; its name."""
        whole = b"%s %d\0" % (kind.encode(), len(content)) + content
        oid = hashlib.sha1(whole).hexdigest()
        _write(self.git / "objects" / oid[:2] / oid[2:], zlib.compress(whole, 1))
        return oid

    def get(self, oid):
        """(kind, content) of an object."""
        whole = zlib.decompress((self.git / "objects" / oid[:2] / oid[2:]).read_bytes())
        head, content = whole.split(b"\0", 1)
        return head.split()[0].decode(), content

    def large(self, sha256):
        """Where a large file is or belongs."""
        return self.git / "lfs/objects" / sha256[:2] / sha256[2:4] / sha256

    def put_large(self, content):
        """Store a large file from memory; its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        _write(self.large(sha256), content)
        return sha256

    def put_pointer(self, sha256, size):
        """The blob that stands for a large file."""
        return self.put("blob", f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode())

    # References.

    def refs(self):
        """{full name: commit}; an annotated tag names the commit that it is about."""
        files = sorted(path for path in (self.git / "refs").rglob("*") if path.is_file())
        return {path.relative_to(self.git).as_posix(): self._commit_of(path.read_text().strip()) for path in files}

    def resolve(self, revision):
        """The commit that a branch, a tag, refs/... or a sha names, or None."""
        refs = self.refs()
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in refs:
                return refs[name]
        if re.fullmatch("[0-9a-f]{40}", revision):
            with suppress(FileNotFoundError):
                return self._commit_of(revision)
        return None

    def name(self, ref, oid):
        """Let a full reference name an object, or nothing (None)."""
        if oid is None:
            (self.git / ref).unlink()
        else:
            _write(self.git / ref, f"{oid}\n".encode(), replace=True)

    def tag(self, name, commit, author, message=None):
        """A tag; one with a message is an object of its own."""
        if message:
            commit = self.put("tag", f"object {commit}\ntype commit\ntag {name}\ntagger {_signed(author)}\n\n{message}\n".encode())
        self.name(f"refs/tags/{name}", commit)

    def _commit_of(self, oid):
        kind, content = self.get(oid)
        return content.split(b"\n")[0].split()[1].decode() if kind == "tag" else oid

    # Commits.

    def commit(self, branch, files, message, author="someone"):
        """A commit whose files are {path: blob}, all of them; the branch then names it."""
        parent = self.refs().get(f"refs/heads/{branch}")
        lines = [f"tree {self._put_tree(files)}", *([f"parent {parent}"] if parent else [])]
        lines += [f"author {_signed(author)}", f"committer {_signed(author)}", "", message, ""]
        oid = self.put("commit", "\n".join(lines).encode())
        self.name(f"refs/heads/{branch}", oid)
        return oid

    def history(self, commit):
        """Each commit back to the first: (sha, author, seconds, message)."""
        while commit:
            head, message = self.get(commit)[1].decode().split("\n\n", 1)
            fields = dict(line.split(" ", 1) for line in head.split("\n"))
            author, seconds = re.fullmatch(r"(.*) <.*> (\d+) .*", fields["author"]).groups()
            yield commit, author, int(seconds), message.strip()
            commit = fields.get("parent")

    def entries(self, commit):
        """{path: Entry} of a commit's files and folders, sorted."""
        return _entries(self.git, commit)

    def _put_tree(self, files):
        folders, rows = {}, []
        for path, oid in files.items():
            first, _, rest = path.partition("/")
            if rest:
                folders.setdefault(first, {})[rest] = oid
            else:
                rows.append((first.encode(), b"100644", oid))
        rows += [(name.encode(), b"40000", self._put_tree(below)) for name, below in folders.items()]
        rows.sort(key=lambda row: row[0] + b"/" * (row[1] == b"40000"))  # git sorts a folder as if its name ended in /
        return self.put("tree", b"".join(b"%s %s\0%s" % (mode, name, bytes.fromhex(oid)) for name, mode, oid in rows))


@cache
def _entries(git, commit):
    """A commit never changes: it is read once."""
    repository, found = Repository(git.parent), {}

    def read(tree, above):
        content = repository.get(tree)[1]
        while content:
            head, rest = content.split(b"\0", 1)
            mode, name = head.split(b" ", 1)
            path, oid, content = above + name.decode(), rest[:20].hex(), rest[20:]
            if mode == b"40000":
                found[path] = Entry(path, oid, is_folder=True)
                read(oid, path + "/")
            else:
                blob = repository.get(oid)[1]
                pointer = _POINTER.fullmatch(blob)
                large = {"lfs": pointer[1].decode(), "size": int(pointer[2])} if pointer else {"size": len(blob)}
                found[path] = Entry(path, oid, blob_size=len(blob), **large)

    read(repository.get(commit)[1].split(b"\n")[0].split()[1].decode(), "")
    return dict(sorted(found.items()))


def _signed(author):
    return f"{author} <{author}@localhost> {int(time.time())} +0000"


def _write(path, content, replace=False):
    """Whole or not at all; objects that are there are not written again."""
    if replace or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
