"""What the test Hub answers: the calls of the Hub's clients, over the repositories of hub_git.py, Xet off.

Who may: a user reads what is public or theirs and writes below their own name; a repository that one may not see is not there.
"""

import base64
import datetime
import fnmatch
import hashlib
import io
import json
import os
import re
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import parse_qs, quote

import yaml
from hub_git import ATTRIBUTES, Repository, belongs_in_lfs
from hub_http import RefusedError, Requests

_REPO = r"/api/(models|datasets)/([^/]+/[^/]+)"
_FILES = r"/(?:(datasets)/)?([^/]+/[^/]+)"
ROUTES = (  # call, method, path, function
    ("whoami", "GET", r"/api/whoami-v2", "whoami"),
    ("create", "POST", r"/api/repos/create", "create"),
    ("validate", "POST", r"/api/validate-yaml", "validate"),
    ("info", "GET", _REPO, "info"),
    ("revision", "GET", _REPO + r"/revision/([^/]+)", "info"),
    ("refs", "GET", _REPO + r"/refs", "refs"),
    ("commits", "GET", _REPO + r"/commits/([^/]+)", "commits"),
    ("tree", "GET", _REPO + r"/tree/([^/]+)(?:/(.*))?", "tree"),
    ("paths info", "POST", _REPO + r"/paths-info/([^/]+)", "paths_info"),
    ("preupload", "POST", _REPO + r"/preupload/([^/]+)", "preupload"),
    ("commit", "POST", _REPO + r"/commit/([^/]+)", "commit"),
    ("tag", "POST", _REPO + r"/tag/([^/]+)", "tag"),
    ("untag", "DELETE", _REPO + r"/tag/([^/]+)", "untag"),
    ("lfs batch", "POST", _FILES + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("lfs verify", "POST", _FILES + r"\.git/info/lfs/objects/verify", "lfs_verify"),
    ("lfs put", "PUT", r"/lfs/(models|datasets)/([^/]+/[^/]+)/([0-9a-f]{64})", "lfs_put"),
    ("lfs get", "GET", r"/lfs/(models|datasets)/([^/]+/[^/]+)/([0-9a-f]{64})", "lfs_get"),
    ("head", "HEAD", _FILES + r"/resolve/([^/]+)/(.+)", "resolve"),
    ("resolve", "GET", _FILES + r"/resolve/([^/]+)/(.+)", "resolve"),
)
_PAGE = 1000  # entries of a tree in one answer


class Calls(Requests):
    """One function per route."""

    routes = ROUTES

    # Who asks, and what they may.

    def _user(self):
        """(name, whether their token may write) or (None, False) for nobody."""
        given = self.headers.get("Authorization")
        if given is None:
            return None, False
        if (user := self.server.users.get(given.removeprefix("Bearer "))) is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    def _repository(self, kind, repo, write=False):
        """The repository, if the one who asks may see it (and write to it)."""
        user, may_write = self._user()
        repository = Repository(self.server.top / (kind or "models") / repo)
        owner = repo.split("/")[0]
        if ".." in repo.split("/") or not repository.exists() or ((repository.folder / "private").exists() and user != owner):
            raise RefusedError(404 if user else 401, "Repository not found" if user else "Invalid username or password.", "RepoNotFound")
        if write and user is None:
            raise RefusedError(401, "Invalid username or password.")
        if write and user != owner:
            raise RefusedError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        if write and not may_write:
            raise RefusedError(403, "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def _commit(self, kind, repo, revision):
        """(repository, sha that the revision names)."""
        repository = self._repository(kind, repo)
        if (sha := repository.resolve(revision or "main")) is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, sha

    def whoami(self):
        user, may_write = self._user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        token = {"displayName": "tests", "role": "write" if may_write else "read"}
        self.json(
            {
                "type": "user",
                "id": user,
                "name": user,
                "fullname": user,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def create(self):
        asked = json.loads(self.content())
        user, may_write = self._user()
        kind, owner = asked.get("type") or "model", asked.get("organization") or user
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if user != owner or not may_write:
            raise RefusedError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        if not re.fullmatch(r"[\w.-]{1,96}", asked["name"]):
            raise RefusedError(400, f"Invalid repo name: {asked['name']}")
        repo = f"{owner}/{asked['name']}"
        url = self.server.url + ("/datasets/" if kind == "dataset" else "/") + repo
        with self.server.writing:
            repository = Repository(self.server.top / f"{kind}s" / repo)
            if repository.exists():
                return self.send(409, json.dumps({"error": f"You already created this {kind} repo", "url": url}).encode())
            Repository.create(repository.folder, asked.get("visibility") == "private" or bool(asked.get("private")))
            repository.commit("main", {".gitattributes": repository.put("blob", ATTRIBUTES)}, "initial commit", user)
        return self.json({"url": url, "name": repo, "id": repo})

    def validate(self):
        errors, warnings = card_problems(json.loads(self.content())["content"])
        if errors and self.headers.get("Accept") == "text/plain":
            return self.send(400, "\n".join(errors).encode(), {"Content-Type": "text/plain"})
        problems = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        return self.send(400 if errors else 200, json.dumps(problems).encode())

    # What is there.

    def info(self, kind, repo, revision=None):
        repository, sha = self._commit(kind, repo, revision)
        files = [entry for entry in repository.entries(sha).values() if not entry.is_folder]
        blobs = self.query.get("blobs", [""])[0].lower() in ("1", "true")
        history = list(repository.history(sha))
        self.json(
            {
                "id": repo,
                "author": repo.split("/")[0],
                "sha": sha,
                "createdAt": _date(history[-1][2]),
                "lastModified": _date(history[0][2]),
                "private": (repository.folder / "private").exists(),
                "gated": "manual" if (repository.folder / "gated").exists() else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": file.path} | (_sibling(file) if blobs else {}) for file in files],
            }
        )

    def refs(self, kind, repo):
        refs = self._repository(kind, repo).refs()
        folders = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/", "pullRequests": "refs/pr/"}
        found = {group: [ref for ref in refs if ref.startswith(above)] for group, above in folders.items()}
        self.json(
            {
                group: [{"name": ref.removeprefix(folders[group]), "ref": ref, "targetCommit": refs[ref]} for ref in names]
                for group, names in found.items()
            }
        )

    def commits(self, kind, repo, revision):
        repository, sha = self._commit(kind, repo, revision)
        self.json(
            [
                {
                    "id": one,
                    "title": message.split("\n")[0],
                    "message": message.partition("\n")[2].strip(),
                    "authors": [{"user": author}],
                    "date": _date(seconds),
                }
                for one, author, seconds, message in repository.history(sha)
            ]
        )

    def tree(self, kind, repo, revision, below):
        repository, sha = self._commit(kind, repo, revision)
        entries, above = repository.entries(sha), (below or "").rstrip("/")
        if above and not (above in entries and entries[above].is_folder):
            raise RefusedError(404, f"{above} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        found = [entry for entry in entries.values() if _is_below(entry.path, above, recursive)]
        start = int(self.query.get("cursor", ["0"])[0])
        rest = "&".join(f"{key}={quote(value)}" for key, (value, *_) in self.query.items() if key != "cursor")
        more = f'<{self.server.url}{self.path.split("?")[0]}?{rest}&cursor={start + _PAGE}>; rel="next"'
        page = [self._told(repository, sha, entry, self.query.get("expand", [""])[0]) for entry in found[start : start + _PAGE]]
        self.json(page, {"Link": more} if len(found) > start + _PAGE else {})

    def paths_info(self, kind, repo, revision):
        repository, sha = self._commit(kind, repo, revision)
        text = self.content().decode()
        asked = json.loads(text) if text.startswith("{") else parse_qs(text)
        entries = repository.entries(sha)
        expand = asked.get("expand") or [""]
        found = [entries[path] for path in dict.fromkeys(path.rstrip("/") for path in asked.get("paths", [])) if path in entries]
        self.json([self._told(repository, sha, entry, expand if isinstance(expand, bool) else expand[0]) for entry in found])

    def _told(self, repository, sha, entry, expand):
        """What the Hub says of a file or folder."""
        told = {"type": "directory" if entry.is_folder else "file", "path": entry.path, "oid": entry.oid, "size": entry.size}
        if entry.lfs:
            told["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": entry.blob_size}
        if str(expand).lower() in ("1", "true"):
            same = None
            for one, _, seconds, message in repository.history(sha):  # back to the commit that last changed it
                there = repository.entries(one).get(entry.path)
                if there is None or there.oid != entry.oid:
                    break
                same = {"id": one, "title": message.split("\n")[0], "date": _date(seconds)}
            told["lastCommit"] = same
        return told

    def resolve(self, kind, repo, revision, path):
        repository, sha = self._commit(kind, repo, revision)
        if (repository.folder / "gated").exists():
            raise RefusedError(403, "Access to this resource is restricted", "GatedRepo")
        entry = repository.entries(sha).get(path)
        if entry is None or entry.is_folder:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.lfs or entry.oid}"'}
        if entry.lfs is None:
            return self.send_range(io.BytesIO(repository.get(entry.oid)[1]), headers)
        # Large files come from another host, which has no business with the token.
        place = f"/lfs/{kind or 'models'}/{repo}/{entry.lfs}"
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.lfs}"'}
        location = f"http://localhost:{self.server.server_port}{place}?key={self._key('GET', place)}"
        return self.send(302, b"", headers | {"Location": location})

    # Large files.

    def _key(self, method, place):
        """What makes an address of a large file good for one method without a token."""
        return hashlib.sha256(f"{self.server.secret} {method} {place}".encode()).hexdigest()[:32]

    def _large(self, method, kind, repo, sha256):
        place = f"/lfs/{kind}/{repo}/{sha256}"
        if self.headers.get("Authorization") is not None:
            raise RefusedError(400, "Only one auth mechanism allowed")
        if self.query.get("key") != [self._key(method, place)]:
            raise RefusedError(403, "SignatureDoesNotMatch")
        return Repository(self.server.top / kind / repo).large(sha256)

    def lfs_batch(self, kind, repo):
        repository = self._repository(kind, repo, write=True)
        objects = []
        for asked in json.loads(self.content())["objects"]:
            place = f"/lfs/{kind or 'models'}/{repo}/{asked['oid']}"
            put = f"{self.server.url}{place}?key={self._key('PUT', place)}&size={asked['size']}"
            verify = f"{self.server.url}{self.path.removesuffix('batch')}verify"
            actions = {"actions": {"upload": {"href": put}, "verify": {"href": verify}}}
            objects.append({"oid": asked["oid"], "size": asked["size"]} | ({} if repository.large(asked["oid"]).exists() else actions))
        self.json({"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_verify(self, kind, repo):
        asked = json.loads(self.content())
        file = self._repository(kind, repo, write=True).large(asked["oid"])
        if not file.exists() or file.stat().st_size != asked["size"]:
            raise RefusedError(404, "Object does not exist")
        self.json({})

    def lfs_put(self, kind, repo, sha256):
        file = self._large("PUT", kind, repo, sha256)
        file.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with NamedTemporaryFile(dir=file.parent, delete=False) as part:
            for piece in self.body():
                part.write(piece)
                digest.update(piece)
                size += len(piece)
        if digest.hexdigest() != sha256 or self.query["size"] != [str(size)]:
            os.unlink(part.name)
            raise RefusedError(400, "The content has another size or checksum than announced")
        os.replace(part.name, file)
        self.send(200, b"", {"ETag": f'"{sha256}"'})

    def lfs_get(self, kind, repo, sha256):
        with open(self._large("GET", kind, repo, sha256), "rb") as file:
            self.send_range(file, {"ETag": f'"{sha256}"'})

    # What is written.

    def preupload(self, kind, repo, revision):
        asked = json.loads(self.content())
        self._repository(kind, repo, write=True)
        repository, sha = self._commit(kind, repo, revision)
        entries = repository.entries(sha)
        ignored = [line.strip() for line in asked.get("gitIgnore", "").splitlines() if line.strip() and not line.startswith("#")]
        self.json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if belongs_in_lfs(file["path"], file["size"], base64.b64decode(file["sample"])) else "regular",
                        "shouldIgnore": any(_ignores(line, file["path"]) for line in ignored),
                        "oid": (entries[file["path"]].lfs or entries[file["path"]].oid) if file["path"] in entries else None,
                    }
                    for file in asked["files"]
                ]
            }
        )

    def commit(self, kind, repo, branch):
        lines = [json.loads(line) for line in self.content().splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        repository = self._repository(kind, repo, write=True)
        with self.server.writing:
            head = repository.refs().get(f"refs/heads/{branch}")
            if head is None:
                raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            if header.get("parentCommit") not in (None, head):
                raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
            files = {entry.path: entry.oid for entry in repository.entries(head).values() if not entry.is_folder}
            for line in lines:
                self._apply(repository, files, line["key"], line["value"])
            message = "\n\n".join(filter(None, (header["summary"], header.get("description"))))
            sha = repository.commit(branch, files, message, repo.split("/")[0])
        url = f"{self.server.url}/{'datasets/' if kind == 'datasets' else ''}{repo}/commit/{sha}"
        self.json({"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})

    def _apply(self, repository, files, key, value):
        """Change {path: blob} as one line of a commit says."""
        path = value.get("path", "").rstrip("/")
        if key != "header" and (not path or {"", ".", "..", ".git"} & set(path.split("/"))):
            raise RefusedError(400, f"Invalid path: {path}")
        if key == "file":
            content = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
            if path == "README.md" and (errors := card_problems(content.decode())[0]):
                raise RefusedError(400, "; ".join(errors))
            files[path] = repository.put("blob", content)
        elif key == "lfsFile":
            large = repository.large(value["oid"])
            if not large.exists():
                raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = repository.put_pointer(value["oid"], large.stat().st_size)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise RefusedError(404, f"A file with the name {path} does not exist", "EntryNotFound")
        elif key == "deletedFolder":
            for below in [file for file in files if file.startswith(path + "/")]:
                del files[below]
        elif key != "header":
            raise RefusedError(400, f"Invalid key: {key}")

    def tag(self, kind, repo, revision):
        asked = json.loads(self.content())
        repository, name = self._repository(kind, repo, write=True), asked["tag"]
        if not re.fullmatch(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*", name):
            raise RefusedError(400, f"Invalid tag name: {name}")
        with self.server.writing:
            _, sha = self._commit(kind, repo, revision)
            if f"refs/tags/{name}" in repository.refs():
                raise RefusedError(409, "Tag reference exists already")
            repository.tag(name, sha, repo.split("/")[0], asked.get("message"))
        self.json({})

    def untag(self, kind, repo, name):
        repository = self._repository(kind, repo, write=True)
        with self.server.writing:
            if f"refs/tags/{name}" not in repository.refs():
                raise RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            repository.name(f"refs/tags/{name}", None)
        self.json({})


def card_problems(text):
    """(errors, warnings) of a README.md's metadata: YAML that is a mapping, with the types that the Hub wants."""
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"bad indentation or syntax: {str(error).splitlines()[0]}"], []
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    wanted = {"configs": list, "tags": list, "task_categories": list, "model-index": list, "dataset_info": (dict, list), "pretty_name": str}
    wanted |= dict.fromkeys(("license", "language", "base_model", "datasets", "source_datasets", "size_categories"), (str, list))
    return [f'"{key}" must be {kind}' for key, kind in wanted.items() if key in data and not isinstance(data[key], kind)], []


def _date(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _sibling(entry):
    lfs = {"lfs": {"sha256": entry.lfs, "size": entry.size, "pointerSize": entry.blob_size}} if entry.lfs else {}
    return {"size": entry.size, "blobId": entry.oid} | lfs


def _is_below(path, top, recursive):
    parent = os.path.dirname(path)
    return parent == top or (recursive and (not top or parent.startswith(top + "/")))


def _ignores(line, path):
    """Whether a line of .gitignore is about a path; the plain forms alone."""
    line = line.strip("/")
    return fnmatch.fnmatch(path, line) or any(fnmatch.fnmatch(part, line) for part in Path(path).parts)
