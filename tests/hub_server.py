"""A Hub in memory: the part of its HTTP API that huggingface_hub uses, with faults on request.

It accepts what the real one accepts and refuses the rest: LFS content that does not have its name's hash, a commit of
content that was not uploaded, deleting what is not there, writing into what belongs to others.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import constants

from modeling_mae.hub import common


LFS = (".safetensors", ".bin", ".pkl", ".pt", ".npy")
KIND = "(?:models|spaces)"
REPO = r"(?P<repo>[^/]+/[^/]+)"


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    sdk: str | None = None  # of a Space
    commits: list[Commit] = field(
        default_factory=lambda: [Commit("0" * 40, "initial commit", {".gitattributes": b""})]
    )

    def at(self, revision: str) -> Commit | None:
        return next((c for c in reversed(self.commits) if revision in ("main", c.sha)), None)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def content_id(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS) else git_hash(content)


class Answer(Exception):
    def __init__(self, status: int, body: dict | list | bytes = b"", **headers: str):
        self.status, self.headers = status, headers
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def missing(what: str) -> Answer:
    return Answer(404, {"error": what}, **{"X-Error-Code": what})


class HubServer(ThreadingHTTPServer):
    """`repos`, `cards` (what was sent to be validated) and `requests` are what it received; `user` owns the token."""

    daemon_threads = True

    def __init__(self, user: str = "me", token: str = "hf_good"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.user, self.token = user, token
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.cards: list[str] = []
        self.requests: list[str] = []
        self.faults: list[list] = []
        self.lock = threading.RLock()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def fail(self, request: str, status: int | str, times: int = 1) -> None:
        """Answer the next `times` requests that match `request` ("PUT /lfs/") with `status`; "cut" ends the connection
        in the middle of the body."""
        self.faults.append([request, status, times])

    def fault(self, request: str) -> int | str | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault[2] and re.search(fault[0], request):
                    fault[2] -= 1
                    return fault[1]

    def count(self, request: str) -> int:
        return sum(bool(re.search(request, line)) for line in self.requests)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[repo].at(revision).files


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        status = self.server.fault(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length", 0))
        if status == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        try:
            if status:
                raise Answer(status, {"error": "asked for by the test"})
            with self.server.lock:
                for method, pattern, name in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if method == self.command.replace("HEAD", "GET") and match:
                        getattr(self, name)(body, **{key: value for key, value in match.groupdict().items() if value})
            raise missing("NoSuchRoute")
        except Answer as answer:
            self.send_response(answer.status)
            for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def check_token(self, repo: str | None = None) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        if repo and repo.split("/")[0] != self.server.user:
            raise Answer(403, {"error": f"{repo} is not yours"})

    def commit_at(self, repo: str, revision: str) -> Commit:
        if repo not in self.server.repos:
            raise missing("RepoNotFound")
        commit = self.server.repos[repo].at(revision)
        if commit is None:
            raise missing("RevisionNotFound")
        return commit

    def whoami(self, body):
        self.check_token()
        raise Answer(200, {"type": "user", "name": self.server.user, "orgs": []})

    def validate_yaml(self, body):
        content = json.loads(body)["content"]
        self.server.cards.append(content)
        try:
            yaml.safe_load(content.split("---")[1])
        except (yaml.YAMLError, IndexError) as error:
            raise Answer(400, {"errors": [{"message": str(error)}]}) from None
        raise Answer(200, {"errors": [], "warnings": []})

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked.get('organization') or self.server.user}/{asked['name']}"
        self.check_token(repo)
        status = 409 if repo in self.server.repos else 200
        self.server.repos.setdefault(repo, Repo(asked.get("visibility") == "private", asked.get("sdk")))
        place = "spaces/" if asked.get("type") == "space" else ""
        raise Answer(status, {"url": f"{self.server.url}/{place}{repo}"})

    def may_write(self, body, repo):
        self.check_token(repo)
        raise Answer(200, {})

    def info(self, body, repo, revision="main"):
        commit = self.commit_at(repo, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        raise Answer(200, {"id": repo, "sha": commit.sha, "siblings": siblings, "tags": [], "private": False})

    def tree(self, body, repo, revision, folder=""):
        found = {}
        for path, content in self.commit_at(repo, revision).files.items():
            if not path.startswith(folder):
                continue
            found[path] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if path.endswith(LFS):
                found[path]["lfs"] = {"oid": content_id(path, content), "size": len(content), "pointerSize": 130}
            if "/" in path:
                above = path.rsplit("/", 1)[0]
                found[above] = {"type": "directory", "path": above, "size": 0, "oid": "0" * 40}
        raise Answer(200, list(found.values())) if found else missing("EntryNotFound")

    def preupload(self, body, repo, revision):
        self.check_token(repo)
        there = self.commit_at(repo, revision).files
        answers = [
            {
                "path": path,
                "uploadMode": "lfs" if path.endswith(LFS) else "regular",
                "shouldIgnore": False,
                "oid": content_id(path, there[path]) if path in there else None,
            }
            for path in (asked["path"] for asked in json.loads(body)["files"])
        ]
        raise Answer(200, {"files": answers})

    def lfs_batch(self, body, repo):
        self.check_token(repo)
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.blobs:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, {"error": "not the content of this hash"})
        self.server.blobs[oid] = body
        raise Answer(200)

    def commit(self, body, repo, revision):
        self.check_token(repo)
        files = dict(self.commit_at(repo, revision).files)
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            path = value["path"]
            if kind == "file":
                files[path] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise Answer(400, {"error": f"{path} was not uploaded"})
                files[path] = self.server.blobs[value["oid"]]
            else:
                gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
                if not gone:
                    raise missing("EntryNotFound")
                for name in gone:
                    del files[name]
        commits = self.server.repos[repo].commits
        message = lines[0]["value"]["summary"]
        sha = hashlib.sha1(commits[-1].sha.encode() + body).hexdigest()
        commits.append(Commit(sha, message, files))
        raise Answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def resolve(self, body, repo, revision, path):
        commit = self.commit_at(repo, revision)
        if path not in commit.files:
            raise missing("EntryNotFound")
        content, status = commit.files[path], 200
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{content_id(path, content)}"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        raise Answer(status, content, **headers)


ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", "/api/repos/create", "create"),
    ("GET", f"/api/{KIND}/{REPO}/auth-check/write", "may_write"),
    ("GET", f"/api/{KIND}/{REPO}(/revision/(?P<revision>.+))?", "info"),
    ("GET", f"/api/{KIND}/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
    ("POST", f"/api/{KIND}/{REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", f"/(?:spaces/)?{REPO}[.]git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("POST", f"/api/{KIND}/{REPO}/commit/(?P<revision>.+)", "commit"),
    ("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


@contextmanager
def served_hub(monkeypatch):
    """A server that this process takes for the Hub, with a token that may write there. Nobody waits to try again."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        monkeypatch.setattr(common, "WAITS", (0, 0))
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
