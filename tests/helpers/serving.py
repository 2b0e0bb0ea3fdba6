"""A real server in a thread with a scripted pair, whose answers are given as texts."""

import socket
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import uvicorn

from relay_trl.engines.circuit_breaker import GuardedTeacher
from relay_trl.relay_config import RelayRecord
from relay_trl.serving.app import RelayServer
from relay_trl.serving.limits import Limits
from relay_trl.serving.pair import Pair


def pair_of(student, teacher=None, pause_s=0.2, **fields):
    """A pair of engines; `fields` are those of a relay config."""
    record = RelayRecord(**{"max_completion_length": 64, "versions": {}, "commit": None, **fields})
    return Pair(student, teacher and GuardedTeacher(teacher, pause_s), record)


@contextmanager
def serving(pair, keys=(), **limits):
    """Serves `pair` as `pair`; gives the server with its `url` and an `openai` client."""
    server = RelayServer(pair, "pair", list(keys), Limits(**limits))
    listener = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    runner = uvicorn.Server(uvicorn.Config(server.app(), log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        server.client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=(*keys, "none")[0], max_retries=0)
        while not runner.started:
            time.sleep(0.01)
        yield server
    finally:
        runner.should_exit = True
        thread.join(10)
        listener.close()


def chat(server, text="Q:", **options):
    """An answer by the client, whole or as a list of chunks."""
    extra = {name: options.pop(name) for name in list(options) if name in EXTRA}
    messages = [{"role": "user", "content": text}]
    answer = server.client.chat.completions.create(model="pair", messages=messages, extra_body=extra, **options)
    return list(answer) if options.get("stream") else answer


EXTRA = ("max_calls", "max_call_tokens", "max_teacher_tokens", "call_bias", "use_teacher", "show_commands", "top_k")


def post(server, body, path="/v1/chat/completions", **headers):
    """A raw request."""
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    if isinstance(body, bytes):
        headers = {"content-type": "application/json", **headers}
    return httpx.post(server.url + path, headers=headers, timeout=30, **content)


def pieces(chunks):
    """(author, text) of a stream, pieces of one author joined."""
    joined = []
    for chunk in chunks:
        for choice in chunk.choices:
            author = (choice.model_extra.get("relay") or {}).get("author")
            if author and choice.delta.content:
                if joined and joined[-1][0] == author:
                    joined[-1] = author, joined[-1][1] + choice.delta.content
                else:
                    joined.append((author, choice.delta.content))
    return joined
