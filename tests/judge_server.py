"""A small OpenAI-compatible server on the loopback interface, honest by default and faulty on demand.

    with JudgeServer() as server:
        judge = Judge(url=server.url, model="loopback", retries=0)
        server.fault = "prose"                       # every request
        server.fault = {"dog": "http_500"}           # requests whose prompt holds "dog"
        server.fault = ["timeout", "down", None]     # one per request in order, honest afterwards
        server.fault = lambda prompt: ...            # a name out of FAULTS, a reply of your own, or None

An honest verdict is yes / 5 where the reference answer occurs in (each of) the model's answer(s), else no / 1.
`server.requests` are the payloads received, `server.keys` the authorization headers, `server.count` their number.
Run as a program, `python tests/judge_server.py LOG`, it prints its URL and appends a line per request to LOG.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GOOD = {"pred": "yes", "score": 4}
REPLIES = {  # what stands in the message of a faulty reply
    "prose": "The answer seems about right to me.",
    "prose_around": "Sure! Here is my verdict: {'pred': 'yes', 'score': 4}. Anything else?",
    "python_dict": "{'pred': 'yes', 'score': 4}",
    "fenced": '```json\n{"pred": "yes", "score": 4}\n```',
    "think": '<think>If it were {"pred": "no", "score": 0}... but no.</think>\n{"pred": "yes", "score": 4}',
    "think_open_end": '</think>{"pred": "yes", "score": 4}',
    "think_unfinished": '<think>Perhaps {"pred": "no", "score": 0}, or else',
    "boolean": '{"pred": true, "score": 4}',
    "python_boolean": "{'pred': True, 'score': 4}",
    "word_correct": '{"pred": "Correct", "score": 4}',
    "float": '{"pred": "yes", "score": 4.8}',
    "text_score": '{"pred": "yes", "score": "4"}',
    "labelled": "pred: yes\nscore: 4",
    "out_of_range": '{"pred": "yes", "score": 7}',
    "negative": '{"pred": "no", "score": -1}',
    "no_score": '{"pred": "yes"}',
    "perhaps": '{"pred": "perhaps", "score": 3}',
    "contradiction": '{"pred": "yes", "score": 5} {"pred": "no", "score": 0}',
    "empty": "",
    "null": None,
}
STATUS = {"http_400": 400, "http_401": 401, "http_404": 404, "http_429": 429, "http_500": 500, "http_503": 503}
FAULTS = (*REPLIES, *STATUS, "timeout", "down", "no_choices", "not_json")


def verdict(prompt: str) -> dict:
    """What an honest judge of our wording replies."""
    fields = dict(re.findall(r"^([A-Z][\w' ]+): (.*)$", prompt, re.MULTILINE))
    answers = [text for name, text in fields.items() if name.startswith("Model's answer")]
    right = all(fields["Reference answer"].lower() in answer.lower() for answer in answers)
    score = {"score": 5 if right else 1}
    return {"pred": "yes" if right else "no", **score} if "Say yes or no" in prompt else score


class JudgeServer:
    """See the head of this file. `delay` is the seconds that each request takes."""

    def __init__(self, fault=None, delay: float = 0.0, log: Path | None = None) -> None:
        self.fault, self.delay, self.log = fault, delay, log
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def count(self) -> int:
        return len(self.requests)

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()

    def fault_for(self, prompt: str) -> str | None:
        if isinstance(self.fault, dict):
            return next((fault for part, fault in self.fault.items() if part in prompt), None)
        if isinstance(self.fault, list):
            return self.fault.pop(0) if self.fault else None
        return self.fault(prompt) if callable(self.fault) else self.fault

    def answer(self, payload: dict, key: str | None) -> str | None:
        """Note a request; the fault or reply for it, None for an honest one."""
        prompt = "\n".join(message["content"] for message in payload["messages"])
        with self.lock:
            self.requests.append(payload)
            self.keys.append(key)
            if self.log is not None:
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(prompt) + "\n")
            return self.fault_for(prompt)

    def _handler(server):  # `self` is the handler inside
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet per reply

            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                self.send(
                    200, {"data": [{"id": "loopback"}]} if self.path == "/v1/models" else {"error": "no such path"}
                )

            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    return self.send(404, {"error": {"message": f"no such path {self.path}"}})
                with server.lock:
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    time.sleep(server.delay)
                    self.reply(payload)
                finally:
                    with server.lock:
                        server.at_once -= 1

            def reply(self, payload: dict) -> None:
                fault = server.answer(payload, self.headers["Authorization"])
                if fault == "timeout":
                    server.stopping.wait(30)
                elif fault == "down":
                    self.close_connection = True
                elif fault == "no_choices":
                    self.send(200, {"model": "loopback-1", "choices": []})
                elif fault == "not_json":
                    self.send(200, "<html>busy</html>", "text/html")
                elif fault in STATUS:
                    self.send(STATUS[fault], {"error": {"message": f"{fault} for {self.headers['Authorization']}"}})
                else:
                    honest = json.dumps(verdict("\n".join(message["content"] for message in payload["messages"])))
                    text = honest if fault is None else REPLIES.get(fault, fault)
                    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
                    self.send(200, {"id": "x", "model": "loopback-1", "choices": [choice], "usage": usage})

            def send(self, status: int, content, kind: str = "application/json") -> None:
                body = (content if isinstance(content, str) else json.dumps(content)).encode()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

        return Handler


if __name__ == "__main__":
    with JudgeServer(log=Path(sys.argv[1]) if len(sys.argv) > 1 else None) as running:
        print(running.url, flush=True)
        threading.Event().wait()
