"""A real HTTP server that speaks /v1/chat/completions, counts, and fails as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Say:
    """What the server does with one request.

    ``text`` is the judgement; with ``status`` other than 200 an error of that ``code`` and ``text``. ``raw`` is sent
    as it stands; ``drop`` closes the connection without a word; ``cut`` announces more bytes than it sends.
    """

    text: str | None = "Good. Rating: [[7]]"
    status: int = 200
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    raw: bytes | None = None
    drop: bool = False
    cut: bool = False
    drip: float = 0.0
    finish_reason: str = "stop"


@dataclass
class Asked:
    """One request as it came in."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    time: float

    @property
    def user(self) -> str:
        return str(self.body["messages"][-1]["content"])


class JudgeServer:
    """Serves on a free port of this machine; used with ``with``.

    Args:
        behave: the request and how often the same messages were asked before -> what to do.
    """

    def __init__(self, behave: Callable[[Asked, int], Say]) -> None:
        self.behave = behave
        self.asked: list[Asked] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._send(404, json.dumps({"error": {"message": "no list"}}).encode(), {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.path, body, headers, time.monotonic())
                with server._lock:
                    before = sum(other.body["messages"] == body["messages"] for other in server.asked)
                    server.asked.append(asked)
                    server._in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server._in_flight)
                try:
                    self._do(server.behave(asked, before))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with server._lock:
                        server._in_flight -= 1

            def _do(self, say: Say) -> None:
                time.sleep(say.seconds)
                if say.drop:
                    self.close_connection = True
                    self.connection.close()
                    return
                if say.raw is not None:
                    data = say.raw
                elif say.status != 200:
                    error = {"message": say.text, "type": "error", "code": say.code, "param": say.param}
                    data = json.dumps({"error": error}).encode()
                else:
                    data = json.dumps(completion(say.text, say.finish_reason)).encode()
                self._send(say.status, data, say.headers, cut=say.cut, drip=say.drip)

            def _send(
                self, status: int, data: bytes, headers: dict[str, str], cut: bool = False, drip: float = 0.0
            ) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data) + 100 * cut))
                self.end_headers()
                for start in range(0, len(data), 1 if drip else len(data)):
                    self.wfile.write(data[start : start + 1] if drip else data)
                    self.wfile.flush()
                    time.sleep(drip)
                self.close_connection = cut

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def completion(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
