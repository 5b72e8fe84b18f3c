"""A stand-in for a language model's server: OpenAI's chat completions over real HTTP, about the digits world.

It plays whichever role a request's instructions name, from the caption in them alone, and draws everything
from the request's seed. Faults are told by request number: a status, "slow", "junk", "drop", "endless", or
the bytes of a body.
"""

import contextlib
import http.server
import json
import re
import socket
import threading
import time

import numpy as np

from mvjax.dialogues import prompts
from mvjax.digits import talk, world

SLOW = 3.0  # seconds


class Server(http.server.ThreadingHTTPServer):
    """Runs in threads of this process.

    Args:
      faults: by request number, from 0; "*": every request.
      wrap: turns what is said into what the model writes, given the request's number.
      delay: seconds for each answer.
      key: refuses other bearer tokens.
      unknown: parameters that it refuses.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *, faults=None, wrap=None, delay=0.0, key=None, unknown=()):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults = faults or {}
        self.wrap = wrap or (lambda text, n: text)
        self.delay, self.key, self.unknown = delay, key, set(unknown)
        self.requests, self.paths = [], []
        self.busy, self.busiest = 0, 0
        self.lock = threading.Lock()
        self.asked = {}  # question text -> Question
        self.replies = {}  # question text -> answer, without a picture

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""

    def say(self, messages, seed):
        """The next turn."""
        rng = np.random.default_rng(seed)
        told = "\n".join(m["content"] for m in messages)
        if "voice companion" in told:
            return self.replies[messages[-1]["content"]]
        if "The topic:" in told:
            question, reply = talk.small_talk(rng, turns=1).turns
            self.replies[question.text] = reply.text
            return question.text
        facts = _facts(told)
        if prompts._USER in told:
            opens = "question about the whole" in told
            guess = facts or talk.random_facts(rng)
            kind = "describe" if opens else _pick(_kinds(told), rng)
            question = talk.ask(kind, guess, rng)
            self.asked[question.text] = question
            return question.text
        return talk.answer(self.asked[messages[-1]["content"]], facts, rng)


def _facts(told):
    found = re.search(r"<notes>\n.*\b(\w+) (\w+) (?:at|in) the ([\w ]+?)\.?\n</notes>", told)
    if not found:
        return None
    colour, digit, place = found.groups()
    return world.Facts(world.DIGITS.index(digit), colour, place)


def _kinds(told):
    """What a user asks, by the manner that is asked for."""
    if prompts.LOC.user in told:
        return ("place", "place", "yesno", "describe")
    if prompts.LEAD1.user in told or prompts.LEAD2.user in told:
        return ("misleading", "misleading", "yesno")
    return talk.KINDS


def _pick(items, rng):
    return items[int(rng.integers(len(items)))]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        """Silent."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
            server.paths.append(self.path)
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self._answer(server, body, number)
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, server, body, number):
        fault = server.faults.get(number, server.faults.get("*"))
        time.sleep(SLOW if fault == "slow" else server.delay)
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            self._send(401, {"error": {"message": "wrong key"}})
        elif refused := server.unknown & body.keys():
            self._send(400, {"error": {"message": f"unknown parameters {sorted(refused)}"}})
        elif isinstance(fault, bytes):
            self._send(200, fault)
        elif isinstance(fault, int):
            self._send(fault, {"error": {"message": f"fault {fault}"}})
        elif fault == "junk":
            self._send(200, {"object": "chat.completion", "choices": []})
        else:
            text = server.wrap(server.say(body["messages"], body.get("seed")), number)
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length" if fault == "endless" else "stop",
            }
            tokens = len(text.split())
            self._send(200, {"choices": [choice], "usage": {"completion_tokens": tokens}})

    def _send(self, status, answer):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serving(kind=Server, **options):
    """A server that is up."""
    server = kind(**options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def captions(folder, count, *, seed=0):
    """captions.jsonl about test scenes, with their pictures; returns its path."""
    from mvjax.data import images

    lines = []
    for scene in world.scenes("test", count, seed):
        facts = scene.facts
        digit = world.DIGITS[facts.digit]
        where = "in the middle" if facts.place == "middle" else f"at the {facts.place}"
        (folder / f"{scene.id}.png").write_bytes(images.encode_png(scene.image))
        lines.append(
            {
                "id": scene.id,
                "caption": f"On a dark canvas there is a {facts.colour} {digit} {where}.",
                "image": f"{scene.id}.png",
                "facts": {"digit": facts.digit, "colour": facts.colour, "place": facts.place},
            }
        )
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


if __name__ == "__main__":  # for other processes and for trying things by hand
    with serving() as running:
        print(running.url, flush=True)
        threading.Event().wait()
