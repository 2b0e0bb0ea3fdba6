"""What a request to a server costs the process that sends it: processor time by HTTP client, for one and the same body and answer.

    python benchmarks/clients.py

The server is a process of its own that gives a finished answer at once; 32 requests are under way at a time. Processor time,
not waiting, is counted, so that others on the machine hardly matter.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import httpx
import openai
from tables import add_output, machine, save, table

from relay_trl.cli.endings import run

CONTEXT = list(range(2000, 2500))
BODY = {
    "model": "m",
    "max_tokens": 64,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "return_token_ids": True,
    "stop_token_ids": [1],
    "seed": 3,
    "stop": ["</call>"],
    "logprobs": 0,
}
CHOICE = {"index": 0, "text": "a b c " * 16, "token_ids": list(range(1000, 1064)), "finish_reason": "length"}
CHOICE["logprobs"] = {"token_logprobs": [-0.12345678] * 64, "tokens": ["tok"] * 64, "text_offset": list(range(64))}
ANSWER = json.dumps(
    {"id": "x", "object": "text_completion", "choices": [CHOICE], "usage": {"prompt_tokens": 500}}
).encode()
IN_FLIGHT = 32


async def serve():
    """Prints its port and answers every request with [`ANSWER`], on connections that stay open."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
        while True:
            try:
                asked = (await reader.readuntil(b"\r\n\r\n")).lower()
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            await reader.readexactly(int(asked.partition(b"content-length:")[2].split(b"\r\n")[0]))
            writer.write(head + ANSWER)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def asking(client: str, url: str):
    """A function that sends one request and reads its answer."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    if client == "openai":
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as api:

            async def ask():
                extra = {"prompt": CONTEXT, **BODY}
                raw = await api.completions.with_raw_response.create(model="m", prompt="", extra_body=extra)
                return json.loads(raw.content)

            yield ask
    elif client == "httpx":
        async with httpx.AsyncClient() as api:

            async def ask():
                content = json.dumps({"prompt": CONTEXT, **BODY})
                return (await api.post(f"{url}/completions", content=content, headers=headers)).json()

            yield ask
    else:
        async with aiohttp.ClientSession() as api:

            async def ask():
                content = json.dumps({"prompt": CONTEXT, **BODY})
                async with api.post(f"{url}/completions", data=content, headers=headers) as response:
                    return json.loads(await response.read())

            yield ask


async def milliseconds(client: str, url: str, requests: int) -> float:
    """Processor time of a request."""

    async def together(ask: Callable[[], Awaitable]):
        answers = await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
        assert all(answer["choices"][0]["token_ids"] == CHOICE["token_ids"] for answer in answers)

    async with asking(client, url) as ask:
        await together(ask)  # connections are made
        started = time.process_time()
        for _ in range(requests // IN_FLIGHT):
            await together(ask)
        return 1000 * (time.process_time() - started) / (requests // IN_FLIGHT * IN_FLIGHT)


async def measure(args) -> list[dict]:
    """Ways take turns within every run."""
    command = [sys.executable, __file__, "--serve"]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(await server.stdout.readline())}/v1"
    found: dict[str, list[float]] = {client: [] for client in ("openai", "httpx", "aiohttp")}
    try:
        for _ in range(args.runs):
            for client, values in found.items():
                values.append(await milliseconds(client, url, args.requests))
    finally:
        server.kill()
        await server.wait()
    return [{"client": client, "ms": values} for client, values in found.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=192, help="in each run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_output(parser, "clients")
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
    rows = asyncio.run(measure(args))
    columns = {"client": lambda row: row["client"], "processor time of a request, ms": lambda row: row["ms"]}
    note = (
        f"Median [smallest, largest] of {args.runs} runs of {args.requests} requests, {IN_FLIGHT} under way; {len(CONTEXT)} "
        f"token ids there, {len(CHOICE['token_ids'])} back; openai {openai.__version__}, httpx {httpx.__version__}, aiohttp "
        f"{aiohttp.__version__}. {machine()}"
    )
    save(args.output_dir, "clients", {"rows": rows, "arguments": vars(args)}, table(columns, rows) + "\n\n" + note)


if __name__ == "__main__":
    run(main)
