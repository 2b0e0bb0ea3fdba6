"""What the evaluation costs beside its engine: `student` and `teacher` through the runner, and vLLM alone, in turn.

    python benchmarks/evaluation.py --model runs/smollm2

Both answer the same prompts with the same seeds and lengths, so they write the same tokens. The runner also grades the answers
and writes its file. Prints tokens per second: the median of the rounds with the smallest and the largest. A first round is
not counted.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tables import add_output, machine, save, table

from relay_trl.cli.endings import run
from relay_trl.engines.base import Sampling
from relay_trl.engines.loading import load_engine
from relay_trl.evaluation.answer_files import AnswerFile, read_run
from relay_trl.evaluation.methods import load_methods
from relay_trl.evaluation.runner import answer_seed, build_problems, evaluate
from relay_trl.grading.grader import Grader
from relay_trl.prompts import PromptBuilder
from relay_trl.relay import RelayRules


def ask_the_engine(engine, problems, max_tokens: int, temperature: float) -> float:
    """Tokens per second of vLLM with all requests at once."""
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": prompt.student} for prompt in problems.prompts]
    params = [
        SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=answer_seed(0, problems.benchmark, k, 0),
            stop_token_ids=sorted(engine.vocabulary.eos_ids),
            logprobs=0,
            detokenize=False,
        )
        for k in range(len(requests))
    ]
    started = time.perf_counter()
    outputs = engine.llm.generate(requests, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def ask_the_runner(engine, problems, method: str, config: RelayRules, folder: str) -> float:
    """Tokens per second of an evaluation, from the first request to the last line on disk."""
    path = Path(folder) / f"{method}.jsonl"
    path.unlink(missing_ok=True)
    with Grader() as grader, AnswerFile(path, {}) as answers:
        started = time.perf_counter()
        evaluate(load_methods([method]), problems, engine, engine, config, grader, answers, has_progress=False)
        seconds = time.perf_counter() - started
    return sum(answer.trace.num_tokens for answer in read_run(path).answers) / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id, student and teacher")
    parser.add_argument("--problems", type=int, default=64, help="asked in a round (default: %(default)s)")
    parser.add_argument("--max_tokens", type=int, default=64, help="of an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    add_output(parser, "evaluation")
    args = parser.parse_args()

    engine = load_engine(args.model, "vllm", max_model_len=1024, needs_logprobs=True)
    rows = [{"prompt": f"What is {17 * k} times {k + 3}? Explain every step.", "answer": str(17 * k * (k + 3))}
            for k in range(args.problems)]  # fmt: skip
    problems = build_problems(
        "numbers", rows, PromptBuilder(engine.vocabulary.tokenizer, engine), engine, 512, args.max_tokens
    )
    sampling = Sampling(temperature=0.7)
    config = RelayRules(student=sampling, teacher=sampling, max_completion_length=args.max_tokens)
    found = {"vLLM alone": [], "student": [], "teacher": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            speeds = {"vLLM alone": ask_the_engine(engine, problems, args.max_tokens, 0.7)}
            for method in ("student", "teacher"):
                speeds[method] = ask_the_runner(engine, problems, method, config, folder)
            for name, speed in speeds.items() if number else ():
                found[name].append(speed)
    lines = [{"name": name, "speed": speeds, "share": [100 * s / d for s, d in zip(speeds, found["vLLM alone"], strict=True)]}
             for name, speeds in found.items()]  # fmt: skip
    columns = {
        "who asks": lambda line: line["name"],
        "tokens/s": lambda line: line["speed"],
        "of vLLM alone, same round, %": lambda line: line["share"],
    }
    note = f"{args.problems} problems of {args.max_tokens} tokens at most, {args.model}. {machine()}"
    save(
        args.output_dir,
        "evaluation",
        {"tokens_per_s": found, "arguments": vars(args)},
        f"{table(columns, lines, 1)}\n\n{note}",
    )


if __name__ == "__main__":
    run(main)
