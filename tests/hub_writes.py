"""What the test Hub lets its users change: repositories, large files, commits and tags."""

import base64
import fnmatch
import hashlib
import json
import os
import re
from pathlib import Path
from tempfile import NamedTemporaryFile

from hub_access import Access
from hub_card import metadata
from hub_git import ATTRIBUTES, Repository, belongs_in_lfs
from hub_http import RefusedError


class Writes(Access):
    """Calls that change something, or ask beforehand."""

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
        _, errors, warnings = metadata(json.loads(self.content())["content"])
        if errors and self.headers.get("Accept") == "text/plain":
            return self.send(400, "\n".join(errors).encode(), {"Content-Type": "text/plain"})
        problems = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        return self.send(400 if errors else 200, json.dumps(problems).encode())

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
            if path == "README.md" and (errors := metadata(content.decode(errors="replace"))[1]):
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
        if not re.fullmatch(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*", name) or ".." in name:
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


def _ignores(line, path):
    """Whether a line of .gitignore is about a path; the plain forms alone."""
    line = line.strip("/")
    return fnmatch.fnmatch(path, line) or any(fnmatch.fnmatch(part, line) for part in Path(path).parts)
