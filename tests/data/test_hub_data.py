"""Data sets on the hub: one that does not answer, and slices streamed from a small hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

pytestmark = pytest.mark.slow

ROWS = [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(20)]


HUB = """
import sys
from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.errors import UserError

try:
    list(Records(DataConfig(path="owner/some-data", split="train[:5]")))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}],
    ids=["refused", "offline"],
)
def test_hub_that_does_not_answer(environment: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", HUB], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    assert run.stdout.startswith("owner/some-data: no such file here, and the hub does not answer (")
    assert "hf download --repo-type dataset owner/some-data" in run.stdout
    assert "Retrying" not in run.stderr


HUB_SLICES = """
import sys
from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.errors import UserError

for path, split in (line.split() for line in sys.stdin):
    try:
        print(path, split, *[record.prompt.id for record in Records(DataConfig(path=path, split=split))])
    except UserError as error:
        print(path, split, error)
"""


def test_hub_slices(tmp_path: Path) -> None:
    """The real client and `datasets` against a small hub on this machine."""
    wanted = {
        "lab/full train[:2]": "train-0 train-1",
        "lab/full:default train[3:5]": "train-3 train-4",
        "lab/full train[-2:]": "train-18 train-19",
        "lab/full train[10%:20%]": "train-2 train-3",
        "lab/full train[18:]": "train-18 train-19",
        "lab/full train[:0]": "",
        "lab/bare train[:1]": "train-0",
        "lab/bare train[-1:]": "lab/bare: the hub does not report the length of train; use row numbers: train[:1000]",
        "lab/full valid[:1]": "lab/full: cannot be opened (Bad split: valid.",
        "lab/full:other train[:1]": "lab/full: cannot be opened (BuilderConfig 'other' not found.",
        "lab/none train[:1]": "lab/none: no such file here and no such data set on the hub; check the name",
    }
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    with local_hub({"lab/full": (content, 20), "lab/bare": (content, None)}) as address:
        run = subprocess.run(
            [sys.executable, "-c", HUB_SLICES],
            input="\n".join(wanted),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)},
        )
    for line, (asked, answer) in zip(run.stdout.splitlines(), wanted.items(), strict=True):
        assert line.strip().startswith(f"{asked} {answer}".strip())


@contextmanager
def local_hub(repositories: dict[str, tuple[bytes, int | None]]) -> Iterator[str]:
    """A server with the hub's few addresses that streaming needs: id -> (train.jsonl, rows that its card states)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            parts = unquote(urlparse(self.path).path).removeprefix("/api").split("/")[2:]
            name, (kind, *rest) = "/".join(parts[:2]), parts[2:] or [""]
            if name not in repositories:
                return self.answer(401, b"{}", X_Error_Code="RepoNotFound")
            files = {"README.md": card(repositories[name][1]), "train.jsonl": repositories[name][0]}
            entries = [{"type": "file", "path": path, "size": len(body), "oid": path} for path, body in files.items()]
            if kind == "tree":
                return self.answer(200, json.dumps(entries).encode())
            if kind == "paths-info":
                return self.answer(200, json.dumps([entry for entry in entries if entry["path"] in asked]).encode())
            if kind != "resolve":
                siblings = [{"rfilename": path} for path in files]
                return self.answer(200, json.dumps({"id": name, "sha": "a" * 40, "siblings": siblings}).encode())
            if rest[1] not in files:
                return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
            body, about = files[rest[1]], {"ETag": f'"{name}{rest[1]}"', "X_Repo_Commit": "a" * 40}
            if not (span := self.headers.get("Range")):
                return self.answer(200, body, **about)
            start, _, end = span.removeprefix("bytes=").partition("-")
            part = body[int(start) : int(end or len(body)) + 1]
            about["Content_Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(body)}"
            return self.answer(206, part, **about)

        do_HEAD = do_POST = do_GET

    def card(num_rows: int | None) -> bytes:
        files = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n"
        info = f"dataset_info:\n  splits:\n  - {{name: train, num_bytes: 1, num_examples: {num_rows}}}\n"
        return f"---\n{files}{info if num_rows else ''}---\n".encode()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
