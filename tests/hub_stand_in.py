"""A hub on this machine: what huggingface_hub asks of the real one, answered from memory.

Small files travel in the commit, `*.safetensors` by Git LFS, as on the hub. Every repository is
private; cards are held to the rules that the hub's own check documents.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_ofnobody"
LICENSES = {"unknown", "other", "mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0"}
TASKS = {"text-to-image", "image-to-text", "unconditional-image-generation", "any-to-any", "other"}


class Repo:
    """Commits (files by path), and the branches that name them."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {}, "made")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{branch}{message}{len(self.messages)}".encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(branch, branch)]


class Hub:
    """The server; `address` is what HF_ENDPOINT would be."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # of Git LFS, by SHA-256
        self.asked: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


def faults(content: str) -> list[str]:
    """What the hub's check would say of a card."""
    head = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else {}
    found = []
    if head.get("license", "unknown") not in LICENSES:
        found.append(f'"license" must be one of {sorted(LICENSES)}')
    if head.get("pipeline_tag") not in TASKS:
        found.append('"pipeline_tag" is not known')
    for name in ("datasets", "metrics", "tags"):
        values = head.get(name, [])
        if not (isinstance(values, list) and all(isinstance(v, str) for v in values)):
            found.append(f'"{name}" must be a list of str')
    for model in head.get("model-index", []):
        for result in model["results"]:
            if not ({"type", "name"} <= result["dataset"].keys() and "type" in result["task"]):
                found.append("model-index: dataset or task")
            if not all({"type", "value"} <= m.keys() for m in result["metrics"]):
                found.append("model-index: metrics")
    return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, act: Callable[[list[str], bytes], None]) -> None:
        body, path = self._body(), unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path == "/api/validate-yaml" or path.startswith("/objects/"):
            act(path.strip("/").split("/"), body)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."})
        else:
            act(path.strip("/").split("/"), body)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def _get(self, path: list[str], _: bytes) -> None:
        api = path[:2] == ["api", "models"]
        place = path[2:] if api else path
        name, (what, revision, *rest) = "/".join(place[:2]), place[2:5] + place[5:]
        repo = self.hub.repos.get(name)
        if repo is None:
            return self._send(404, {}, X_Error_Code="RepoNotFound")
        oid = repo.refs.get(revision, revision)
        if oid not in repo.commits:
            return self._send(404, {}, X_Error_Code="RevisionNotFound")
        files = repo.commits[oid]
        if what == "revision":
            names = [{"rfilename": file} for file in files]
            return self._send(200, {"id": name, "sha": oid, "siblings": names})
        if what == "tree":
            listed = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
            return self._send(200, listed)
        data = files.get("/".join(rest))
        if data is None:
            return self._send(404, {}, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self._send(200, data, ETag=etag, X_Repo_Commit=oid)

    def _post(self, path: list[str], body: bytes) -> None:
        hub = self.hub
        if path == ["api", "validate-yaml"]:
            wrong = [{"message": fault} for fault in faults(json.loads(body)["content"])]
            return self._send(400 if wrong else 200, {"errors": wrong, "warnings": []})
        if path == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            status = 409 if name in hub.repos else 200
            hub.repos.setdefault(name, Repo())
            return self._send(status, {"url": f"{hub.address}/{name}", "id": name})
        if path[-3:] == ["lfs", "objects", "batch"]:
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.address}/objects/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._send(200, {"objects": objects})
        name, what, branch = "/".join(path[2:4]), path[4], "/".join(path[5:])
        repo = hub.repos[name]
        if what == "branch":
            status = 409 if branch in repo.refs else 200
            repo.refs.setdefault(branch, repo.refs["main"])
            return self._send(status, {})
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": modes})
        return self._commit(name, branch, [json.loads(line) for line in body.splitlines()])

    def _commit(self, name: str, branch: str, lines: list[dict]) -> None:
        repo = self.hub.repos[name]
        files, message = dict(repo.files(branch)), ""
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert key == "deletedFile"
                del files[value["path"]]
        oid = repo.commit(branch, files, message)
        address = f"{self.hub.address}/{name}/commit/{oid}"
        self._send(200, {"commitUrl": address, "commitOid": oid, "success": True})

    def _put(self, path: list[str], body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == path[-1]
        self.hub.objects[path[-1]] = body
        self._send(200)
