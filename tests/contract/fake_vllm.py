"""A stand-in for vLLM in a test: its requests and answers (as of 0.33) on a Unix socket, with plain PEFT behind them.

It loads the folders that it is given with ``PeftModel.from_pretrained`` over plain transformers, and generates
greedily, one pass of the whole text for each token.
"""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

END = 2


class FakeVllm:
    """The server; ``with`` starts it.

    Attributes:
        calls: Path and body of each call, in order.
        bad: Path to what is answered instead, once or as often as it stands there: a status and a body.
        events: Lines that a stream consists of instead.
        held: While it is set, no answer goes on behind its first token.
        sent: Set when an answer has begun.
        hung_up: Set when a caller has left in the middle of an answer.
        rank: The largest rank that it takes.
        evicted: Adapters that it knows and has no longer in memory; it cannot unload them, as some versions cannot.
    """

    def __init__(self, base: Path, *, runtime_loading: bool = True, rank: int = 512) -> None:
        self.base, self.runtime_loading, self.rank = base, runtime_loading, rank
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.bad: dict[str, tuple[int, str]] = {}
        self.events: list[str] | None = None
        self.held, self.sent, self.hung_up = threading.Event(), threading.Event(), threading.Event()
        self.models: dict[str, Any] = {}
        self.evicted: set[str] = set()
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="vllm-"))
        self.socket = self._folder / "s"

    @property
    def address(self) -> str:
        return f"vllm=unix:{self.socket}"

    def __enter__(self) -> FakeVllm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.held.clear()
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Listen; what was loaded before is forgotten."""
        self.models = {}
        self._server = _Server(str(self.socket))
        self._server.vllm = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no calls any longer."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.socket.unlink(missing_ok=True)

    def paths(self) -> list[str]:
        """The paths of all calls but those for its health, in order; they are forgotten."""
        found = [path for path, _ in self.calls if path != "/health"]
        self.calls.clear()
        return found

    def load(self, body: dict[str, Any]) -> tuple[int, str]:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.models and not body.get("load_inplace"):
            return 400, error(f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput", 400)
        if not (folder / "adapter_config.json").is_file():
            return 404, error(f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError", 404)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if (rank := max([config["r"], *config["rank_pattern"].values()])) > self.rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.rank}."
            return 500, error(said, "InternalServerError", 500)
        with self._lock:
            plain = AutoModelForCausalLM.from_pretrained(self.base)
            self.models[name] = PeftModel.from_pretrained(plain, folder).eval()
        self.evicted.discard(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> tuple[int, str]:
        name = body["lora_name"]
        if name in self.evicted:
            said = f"Failed to remove lora adapter '{name}' from the engine."
            return 500, error(said, "InternalServerError", 500)
        if self.models.pop(name, None) is None:
            return 404, error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    @torch.no_grad()
    def logits(self, name: str, ids: list[int]) -> torch.Tensor:
        """``[s, vocabulary]``."""
        with self._lock:
            found: torch.Tensor = self.models[name](input_ids=torch.tensor([ids])).logits[0]
        return found

    def tokens(self, body: dict[str, Any]) -> Iterator[tuple[int, str | None]]:
        """Each token of a greedy answer, and why it is the last one."""
        ids, new, ends = list(body["prompt"]), [], {END, *body["stop_token_ids"]}
        while True:
            token = int(self.logits(body["model"], ids)[-1].argmax())
            ids.append(token)
            new.append(token)
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            stopped = token in ends or any(stop in text for stop in body["stop"])
            finish = "stop" if stopped else "length" if len(new) == body["max_tokens"] else None
            yield token, finish
            if finish:
                return

    def prompt_logprobs(self, name: str, ids: list[int]) -> list[dict[str, Any] | None]:
        rows = self.logits(name, ids).log_softmax(-1)
        found: list[dict[str, Any] | None] = [None]
        for i, token in enumerate(ids[1:]):
            top = int(rows[i].argmax())
            found.append(
                {
                    str(one): {"logprob": float(rows[i, one]), "rank": int((rows[i] > rows[i, one]).sum()) + 1}
                    for one in (token, top)
                }
            )
        return found


def error(message: str, kind: str, code: int) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    vllm: FakeVllm

    def __init__(self, path: str) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(path, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show what is not a caller that has gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.vllm.calls.append((self.path, {}))
        self._send(200 if self.path == "/health" else 404, "")

    def do_POST(self) -> None:
        vllm = self.server.vllm
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        vllm.calls.append((self.path, body))
        if self.path in vllm.bad:
            self._send(*vllm.bad[self.path])
        elif self.path == "/v1/load_lora_adapter" and vllm.runtime_loading:
            self._send(*vllm.load(body))
        elif self.path == "/v1/unload_lora_adapter" and vllm.runtime_loading:
            self._send(*vllm.unload(body))
        elif self.path != "/v1/completions":
            self._send(404, json.dumps({"detail": "Not Found"}))
        elif body["model"] not in vllm.models:
            said = f"The model `{body['model']}` does not exist."
            self._send(404, error(said, "NotFoundError", 404))
        elif body.get("stream"):
            self._stream(body)
        else:
            self._send(200, json.dumps(self._completion(body)))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        vllm = self.server.vllm
        assert body["prompt_logprobs"] == 1
        choices = [
            {
                "index": i,
                "text": "",
                "finish_reason": "length",
                "prompt_logprobs": vllm.prompt_logprobs(body["model"], ids),
            }
            for i, ids in enumerate(body["prompt"])
        ]
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices[::-1]}

    def _stream(self, body: dict[str, Any]) -> None:
        vllm = self.server.vllm
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if vllm.events is not None:
            for line in vllm.events:
                self._chunk(f"{line}\n\n")
            self._chunk("")
            return
        try:
            for token, finish in vllm.tokens(body):
                text = vllm.tokenizer.decode([token], skip_special_tokens=True)
                choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "token_ids": [token]}
                self._event({"id": "cmpl-1", "object": "text_completion", "choices": [choice]})
                self.server.vllm.sent.set()
                while vllm.held.is_set():
                    self._chunk(": waiting\n\n")
                    threading.Event().wait(0.02)
            self._chunk("data: [DONE]\n\n")
            self._chunk("")
        except OSError:
            vllm.hung_up.set()
            raise

    def _event(self, document: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(document)}\n\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, status: int, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", "7")
        self.end_headers()
        self.wfile.write(data)
