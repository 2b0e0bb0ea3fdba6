"""lm-evaluation-harness against `relay-trl serve`, unchanged: a small task of the embedded arithmetic pair.

    pip install "lm_eval[api]"
    python benchmarks/harness.py

The task is asked twice: which of three worked answers is likeliest (log-probabilities of prompts, `local-completions`), and what the
pair itself writes (`local-completions` and `local-chat-completions`).
"""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from servers import free_port, running

from relay_trl.data.arithmetic import problems

ROOT = Path(__file__).parents[1]
PAIR = ROOT / "data" / "arithmetic"
CHOICE = """task: sums_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{problem}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
WRITTEN = """task: sums_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{problem}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, temperature: 0.0, max_gen_toks: 64}}
filter_list: [{{name: last, filter: [{{function: regex, regex_pattern: "#([0-9-]+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match}}]
"""


def write_task(folder: Path, count: int = 24):
    """The task's two files and its problems."""
    path = folder / "sums.jsonl"
    rows = [
        {
            "problem": row["prompt"],
            "answer": row["answer"],
            "choices": [row["solution"], f"#{int(row['answer']) + 1}", f"#{int(row['answer']) + 10}"],
        }
        for row in problems("test", count, 0)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "choice.yaml").write_text(CHOICE.format(path=path), encoding="utf-8")
    (folder / "written.yaml").write_text(WRITTEN.format(path=path), encoding="utf-8")


def main():
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_task(folder)
        port = free_port()
        serve = ["-m", "relay_trl", "serve", "--student", str(PAIR / "warmed_up"), "--teacher", str(PAIR / "teacher")]
        command = [sys.executable, *serve, "--port", str(port)]
        stack.enter_context(running(command, f"http://127.0.0.1:{port}/ready", folder / "serve.log"))
        base = f"model=warmed_up,num_concurrent=4,base_url=http://127.0.0.1:{port}/v1"
        tokens = f"tokenizer_backend=huggingface,tokenizer={PAIR / 'warmed_up'}"
        for args in (
            ["local-completions", f"{base}/completions,{tokens}", "sums_choice,sums_written"],
            ["local-chat-completions", f"{base}/chat/completions", "sums_written", "--apply_chat_template"],
        ):
            model, options, tasks, *more = args
            command = [
                "--model",
                model,
                "--model_args",
                options,
                "--tasks",
                tasks,
                "--include_path",
                str(folder),
                *more,
            ]
            subprocess.run([sys.executable, "-m", "lm_eval", *command], check=True)


if __name__ == "__main__":
    main()
