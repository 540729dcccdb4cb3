"""The scoring part of vLLM's server on real sockets, for a model in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.models.loading import load_model


class Vllm:
    """The scoring part of vLLM's server, for a model in this process."""

    def __init__(self, model: ModelConfig) -> None:
        self.model, self.tokenizer = load_model(model)
        self.model.eval()
        self.requests: list[dict[str, Any]] = []
        self.fails = 0
        """How many of the next requests end with a 503."""
        self.most = 20
        """As `--max-logprobs`."""
        self.shift = 0
        """Added to ids when they are spelled: another tokenizer."""
        self.scores = True
        self.max_model_len: int | None = None
        self.waiting = threading.Event()
        self.waiting.set()
        """While it is not set, requests are not answered."""
        self.arrived = 0
        self.on_arrival: Callable[[], object] = lambda: None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = server.answer(self.path, body)
                content = json.dumps(answer).encode()
                with suppress(ConnectionError):  # nobody waits any more
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def do_GET(self) -> None:
                known: dict[str, Any] = {"id": "tiny", "object": "model"}
                if server.max_model_len is not None:
                    known["max_model_len"] = server.max_model_len
                content = json.dumps({"object": "list", "data": [known]} if self.path == "/v1/models" else {}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def engine(self) -> EngineConfig:
        return EngineConfig(base_url=f"http://127.0.0.1:{self.server.server_port}/v1", max_concurrency=4, max_retries=3)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.arrived += 1
        self.on_arrival()
        self.waiting.wait()
        with self.lock:
            self.requests.append(body)
            if path != "/v1/completions":
                return 404, {"error": {"message": "Not Found"}}
            if self.fails:
                self.fails -= 1
                return 503, {"error": {"message": "busy"}}
            choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
            if self.scores:
                choice["prompt_logprobs"] = self.prompt_logprobs(body["prompt"], body["prompt_logprobs"])
            return 200, {"choices": [choice]}

    def prompt_logprobs(self, ids: list[int], number: int) -> list[Any]:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        found: list[Any] = [None]
        for place, row in enumerate(logits.log_softmax(-1)[:-1]):
            wanted = dict.fromkeys([ids[place + 1], *row.topk(min(number, self.most)).indices.tolist()])
            found.append({
                str(id): {"logprob": row[id].item(), "rank": 1}
                | ({"decoded_token": self.tokenizer.decode([id + self.shift])} if number < 100 else {})
                for id in wanted
            })  # fmt: skip
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
