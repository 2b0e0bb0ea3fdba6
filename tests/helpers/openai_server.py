"""A server in a thread with the part of OpenAI's API that an engine uses. It keeps the requests."""

import asyncio
import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers.tokenizers import byte_level
from relay_trl.engines.base import Sampling
from relay_trl.vocabulary import Vocabulary

VOCABULARY = Vocabulary(byte_level())


GREEDY = Sampling(temperature=0.0)


class Server:
    """Answers every request with " 42" and an end token, after the faults that are lined up in `faults`.

    `faults` holds functions that get the request handler and answer in its place. `edit` changes a good answer.
    """

    def __init__(self, models=("tiny",), has_ids=True, port=0):
        self.models, self.has_ids = list(models), has_ids
        self.faults, self.requests, self.headers, self.times = [], [], [], []
        self.edit = lambda answer: None
        self.break_off = None  # how many chunks of a stream go out before the connection is dropped
        self.delay_s = 0.0
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        self._connections = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, body, **headers):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

            def stream(self, chunks, ending=b"data: [DONE]\n\n"):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
                events += [ending] if ending else []  # an empty chunk would be the end
                limit, server.break_off = server.break_off, None
                for event in events[:limit]:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
                    self.wfile.flush()
                if limit is None:
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    drop(self)

            def do_GET(self):
                data = [{"id": m, "root": f"/models/{m}", "max_model_len": 512} for m in server.models]
                self.reply(200, {"object": "list", "data": data})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.requests.append(body)
                    server.headers.append(self.headers)
                    server.times.append(time.monotonic())
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                    fault = server.faults.pop(0) if server.faults else None
                try:
                    time.sleep(server.delay_s)
                    if fault is not None:
                        fault(self)
                    elif body["model"] not in server.models:
                        self.reply(404, {"error": {"message": f"The model {body['model']} does not exist."}})
                    else:
                        answer = server.answer(body, is_chat="chat" in self.path)
                        server.edit(answer)
                        if body.get("stream"):
                            self.stream(server.chunks(answer))
                        else:
                            self.reply(200, answer)
                finally:
                    with server._lock:
                        server.in_flight -= 1

        class HTTPServer(ThreadingHTTPServer):
            request_queue_size = 128  # with the default of 5, a burst of connections waits for a second

            def get_request(self):
                connection, address = super().get_request()
                server._connections.append(connection)
                return connection, address

        self._http = HTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, body, is_chat):
        ids = [*VOCABULARY.encode(" 42"), VOCABULARY.eos_id]
        is_cut = len(ids) > body["max_tokens"]
        ids = ids[: body["max_tokens"]]
        text = VOCABULARY.decode(ids if is_cut else ids[:-1])
        choice = {"index": 0, "finish_reason": "length" if is_cut else "stop", "stop_reason": None}
        choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        if "logprobs" in body:
            choice["logprobs"] = {"token_logprobs": [-0.25] * len(ids)}
        if self.has_ids and body.get("return_token_ids"):
            prompt = body.get("prompt")
            choice["token_ids"] = ids
            choice["prompt_token_ids"] = VOCABULARY.encode(prompt) if isinstance(prompt, str) else prompt
        return {"id": "x", "choices": [choice], "usage": {"completion_tokens": len(ids)}}

    def chunks(self, answer):
        """A whole answer as vLLM streams it: a token each, the reason with the last one, and then the usage."""
        choice, usage = answer["choices"][0], answer["usage"]
        is_chat = "message" in choice
        text = choice["message"]["content"] if is_chat else choice["text"]
        ids = choice.get("token_ids")
        # The text of an end token is not sent; without ids, a chunk is a character
        texts = list(text) + [""] if ids is None else [VOCABULARY.decode([token]) for token in ids]
        if ids is not None and ids[-1] == VOCABULARY.eos_id:
            texts[-1] = ""
        scores = (choice.get("logprobs") or {}).get("token_logprobs")
        for k, piece in enumerate(texts):
            part = {"index": 0, "finish_reason": None}
            part |= {"delta": {"content": piece}} if is_chat else {"text": piece}
            if ids is not None:
                part["token_ids"] = [ids[k]]
            if scores is not None:
                part["logprobs"] = {"token_logprobs": [scores[k]]}
            if k == len(texts) - 1:
                part |= {name: choice[name] for name in ("finish_reason", "stop_reason") if name in choice}
            yield {"id": "x", "choices": [part]}
        yield {"id": "x", "choices": [], "usage": usage}

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for connection in self._connections:  # else a handler goes on serving those that are open
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def reply(status, body, **headers):
    return lambda handler: handler.reply(status, body, **headers)


def drop(handler):
    handler.close_connection = True
    handler.connection.close()


def run(engine, *coroutines):
    async def all_of_them():
        try:
            return await asyncio.gather(*coroutines)
        finally:
            await engine.aclose()

    return asyncio.run(all_of_them())
