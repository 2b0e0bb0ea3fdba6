"""Many streams through the relay server while its teacher fails in every way, again and again.

    python benchmarks/soak_server.py --seconds 300 --streams 256

The student is scripted and calls once in every answer. The teacher is an HTTP server that answers, refuses, breaks off, hangs and
sends nonsense, a second each. Every answer is known: with the teacher's words, with a part of them, or without them and marked.
The run fails if a stream is lost, mixed up or ends in an error, or if memory grows.
"""

import argparse
import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path

import httpx
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from relay_trl.engines.circuit_breaker import GuardedTeacher
from relay_trl.engines.loading import load_vocabulary
from relay_trl.engines.openai import OpenAIEngine
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.relay_config import RelayRecord
from relay_trl.serving.app import RelayServer
from relay_trl.serving.limits import Limits
from relay_trl.serving.pair import Pair
from relay_trl.serving.serve import KEEP_ALIVE_S

STUDENT = Path(__file__).parents[1] / "data" / "arithmetic" / "student"
FAULTS = ("none", "refuse", "none", "break", "none", "hang", "none", "nonsense")
PERIOD_S = 1.0
MOST_GROWTH_MB = 64


RUNNING: list[tuple[uvicorn.Server, threading.Thread]] = []


def listen(app) -> str:
    """Serves an application in a thread until [`stop`]; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_keep_alive=KEEP_ALIVE_S))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    RUNNING.append((server, thread))
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def stop():
    """Ends the servers, also those that hang."""
    for server, thread in RUNNING:
        server.should_exit = server.force_exit = True
        thread.join(10)


def teacher_app() -> Starlette:
    """Repeats the last two characters of its prompt, except while it fails."""

    async def complete(request):
        words = (await request.json())["prompt"][-2:]
        fault = FAULTS[int(time.monotonic() / PERIOD_S) % len(FAULTS)]
        if fault == "refuse":
            return JSONResponse({"error": {"message": "overloaded"}}, 503)
        if fault == "nonsense":
            return Response(b"data: <html>\n\n", media_type="text/event-stream")

        async def events():
            if fault == "hang":
                await asyncio.sleep(30)
            for k, letter in enumerate(words):
                if fault == "break" and k == 1:
                    raise ConnectionError("this is the fault")
                yield f"data: {json.dumps({'choices': [{'text': letter, 'finish_reason': None}]})}\n\n"
            yield 'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/completions", complete, methods=["POST"])])


def student_engine() -> ScriptedEngine:
    """To `1234=` it says `1234`, calls, and says `#1234`."""
    vocabulary = load_vocabulary(str(STUDENT))

    def script(context):
        number, _, written = vocabulary.decode(context).partition("=")
        words = f"#{number}" if "+2;" in written else f"{number}+2;"
        return vocabulary.encode(words) + ([vocabulary.eos_id] if "+2;" in written else [])

    engine = ScriptedEngine(vocabulary, script, delay_s=0.002)
    engine.contexts = _Forgetful()
    return engine


class _Forgetful(list):
    """A list that keeps nothing: the engine's record of a whole run would look like a leak."""

    def append(self, item):
        pass


def verdict(number: int, text: str, has_failed: bool) -> str:
    """The kind of an answer: helped, partly helped, alone, or wrong."""
    start, end, words = str(number), f"#{number}", str(number)[-2:]
    middle = text[len(start) : len(text) - len(end)]
    if not (text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)):
        return "wrong"
    if middle == words and not has_failed:
        return "helped"
    return ("partly helped" if middle else "alone") if has_failed and words.startswith(middle) else "wrong"


async def one_stream(client: httpx.AsyncClient, url: str, numbers, until: float, seen: Counter):
    while time.monotonic() < until:
        number = next(numbers)
        body = {"model": "pair", "messages": [{"role": "user", "content": f"{number}="}], "stream": True}
        text, has_failed, is_done = "", False, False
        try:
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    is_done = is_done or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        for choice in json.loads(line[6:])["choices"]:
                            text += choice["delta"].get("content") or ""
                            has_failed = has_failed or choice.get("relay", {}).get("teacher_failed", False)
            seen[verdict(number, text, has_failed) if response.status_code == 200 and is_done else "lost"] += 1
        except (httpx.HTTPError, KeyError, ValueError) as error:
            seen[f"error: {type(error).__name__}"] += 1


async def soak(url: str, streams: int, seconds: float, seen: Counter) -> list[float]:
    """Runs all streams; gives the process's memory in MB, about a hundred times over."""
    memory: list[float] = []
    until, numbers = time.monotonic() + seconds, count(1000)

    async def watch():
        while time.monotonic() < until:
            await asyncio.sleep(seconds / 100)
            memory.append(psutil.Process().memory_info().rss / 1e6)

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(watch(), *(one_stream(client, url, numbers, until, seen) for _ in range(streams)))
    return memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="(default: %(default)s)")
    parser.add_argument("--streams", type=int, default=256, help="at once (default: %(default)s)")
    args = parser.parse_args()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # or it logs each broken answer
    teacher = OpenAIEngine(listen(teacher_app()), "teacher", max_concurrency=1024, timeout_s=1.0, max_retries=0)
    record = RelayRecord(open_tag="+", close_tag=";", max_completion_length=64, versions={}, commit=None)
    pair = Pair(student_engine(), GuardedTeacher(teacher, pause_s=0.2), record)
    url = listen(RelayServer(pair, "pair", limits=Limits(max_in_flight=args.streams)).app())
    seen: Counter = Counter()
    memory = asyncio.run(soak(url, args.streams, args.seconds, seen))
    stop()
    settled, last = memory[len(memory) // 3 :], memory[-1]
    growth = last - settled[0]
    print(f"{args.streams} streams, {args.seconds:g} s, {sum(seen.values())} answers: {dict(seen)}")
    print(f"memory {settled[0]:.0f} MB after a third of the time, {last:.0f} MB at the end")
    wrong = {name: number for name, number in seen.items() if name not in ("helped", "partly helped", "alone")}
    missing = [name for name in ("helped", "alone") if not seen[name]]
    if wrong or missing or growth > MOST_GROWTH_MB:
        sys.exit(f"FAILED: {wrong or ''} {'never ' + ', '.join(missing) if missing else ''} memory {growth:+.0f} MB")


if __name__ == "__main__":
    main()
