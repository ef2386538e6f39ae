"""A small Hugging Face hub on this machine: the paths of its API through which files are pushed and pulled."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name, each with its files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path).path.strip("/").split("/")
        self.server.tokens.append(self.headers.get("Authorization"))
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            user = asked.get("organization") or asked["name"].split("/")[0]
            name = f"{asked.get('type') or 'model'}s/{user}/{asked['name'].split('/')[-1]}"
            if user == "forbidden":
                return self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            there = name in self.server.files
            self.server.files.setdefault(name, {})
            self.server.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return self._answer(409 if there else 200, {"url": f"{self.server.address}/{name.removeprefix('models/')}"})
        if parts == ["api", "validate-yaml"]:
            return self._answer(200, {"errors": [], "warnings": []})
        name = "/".join(parts[1:4])
        if parts[4] == "preupload":
            asked = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self._answer(200, {"files": [{"path": file["path"], **plain} for file in asked]})
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            if line["key"] == "file":
                self.server.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            if line["key"] == "deletedFile":
                del self.server.files[name][line["value"]["path"]]
        facts = {"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return self._answer(200, facts)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            name, files = "/".join(parts[1:4]), self.server.files.get("/".join(parts[1:4]))
            if files is None:
                return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            if parts[4:5] == ["tree"]:
                return self._answer(200, [_entry(path, content) for path, content in files.items()])
            found = {"id": name.partition("/")[2], "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
            return self._answer(200, {**found, "private": False, "disabled": False, "gated": False, "tags": [],
                                      "downloads": 0, "likes": 0})  # fmt: skip
        kind = "" if parts[0] == "datasets" else "models/"
        at = parts.index("resolve")
        files = self.server.files.get(kind + "/".join(parts[:at]))
        if files is None:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        content = files.get("/".join(parts[at + 2 :]))
        if content is None:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return self._send(200, content, {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": COMMIT})

    def _answer(self, status: int, facts: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(facts).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _hash(content)}


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
