"""A small OpenAI-compatible server, with the faults that real ones have, for a client to be tested against.

Its model knows no context: the log-probability of a token is that of fixed logits, so what a client makes of an answer
can be checked by hand. Faults are given by name, each for so many requests.
"""

import json
import math
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

VOCAB = 50
LOGITS = np.linspace(0, 3, VOCAB)


def logp_of(temperature=1.0, top_k=0):
    """Log-probabilities of all tokens."""
    scaled = LOGITS / temperature
    if top_k:
        scaled = np.where(np.argsort(np.argsort(-scaled)) < top_k, scaled, -np.inf)
    return scaled - np.log(np.exp(scaled).sum())


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


class FakeServer:
    """FakeServer(raw=..., has_ids=..., has_logprobs=...) with `faults` to come; `requests` keeps all bodies."""

    def __init__(self, *, raw=False, has_ids=True, has_logprobs=True):
        self.raw, self.has_ids, self.has_logprobs = raw, has_ids, has_logprobs
        self.faults, self.requests, self.gate = Counter(), [], threading.Event()
        self.gate.set()
        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self._server.fake = self
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def takes(self, fault):
        """Whether this request is one that has the fault."""
        self.faults[fault] -= 1
        return self.faults[fault] >= 0

    def choice(self, body, index, token_ids, finish):
        mode = {} if self.raw else {"temperature": body["temperature"] or 1.0, "top_k": body.get("top_k", 0)}
        logp = logp_of(**mode)
        choice = {"index": index, "text": "".join(chr(97 + id % 26) for id in token_ids), "finish_reason": finish}
        if self.has_ids:
            choice["token_ids"] = token_ids
        if self.has_logprobs and body.get("logprobs") is not None:
            top = sorted(range(VOCAB), key=lambda id: -logp[id])[: body["logprobs"]]
            choice["logprobs"] = {
                "token_logprobs": [float(logp[id]) for id in token_ids],
                "top_logprobs": [{f"token_id:{id}": float(max(logp[id], -9999.0)) for id in top}] * len(token_ids),
            }
        return choice


def tokens_of(prompt, seed, index):
    """The one thing that this model says: which tokens follow depends on where in the text it is, and the seed."""
    position = len(prompt)
    while True:
        yield (7 * position + 3 * index + seed) % VOCAB
        position += 1


class Handler(BaseHTTPRequestHandler):
    """One connection; `server.fake` is whose."""

    def log_message(self, *words):
        pass

    def do_GET(self):
        self.tell(200, {"data": [{"id": "fake", "owned_by": "somebody", "max_model_len": 100}]})

    def do_POST(self):
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.requests.append((self.path, body))
        fake.gate.wait(30)
        if fake.takes("busy"):
            self.tell(503, {"error": {"message": "too much to do"}}, {"Retry-After": "0.05"})
        elif fake.takes("broken"):
            self.tell(500, {"error": {"message": "a defect"}})
        elif fake.takes("refuses"):
            self.tell(400, {"error": {"message": "not like this"}})
        elif body.get("stream"):
            self.stream(fake, body)
        else:
            ids = next(tokens_of(body["prompt"], body["seed"], 0)) if isinstance(body["prompt"], list) else 1
            self.tell(200, {"choices": [fake.choice(body, 0, [ids], "length")]})

    def tell(self, status, value, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, fake, body):
        """Two tokens of each choice at once."""
        self.send_response(200)
        self.end_headers()
        length, sources = body["max_tokens"], [tokens_of(body["prompt"], body["seed"], i) for i in range(body["n"])]
        for first in range(0, length, 2):
            is_last = first + 2 >= length
            for index, source in enumerate(sources):
                ids = [next(source) for _ in range(min(2, length - first))]
                choice = fake.choice(body, index, ids, "length" if is_last else None)
                if fake.takes("nan"):
                    choice["logprobs"]["token_logprobs"][0] = math.nan
                self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
                self.wfile.flush()
            if not is_last and fake.takes("drops"):
                return
        self.wfile.write(b"data: [DONE]\n\n")
