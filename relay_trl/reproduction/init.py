"""Writes the pair file of a new student, teacher and data set, each choice with its reason.

Owns the choices. It looks at configs, tokenizers, the data and the hardware, and loads no weights.
"""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig

from ..data.embedded import EMBEDDED
from ..data.files import kind_of, read_rows
from ..data.registry import REPORTED, SOURCES
from ..data.sources import load_rows
from ..engines.checks import check_model
from ..prompts import BOXED_TEMPLATE
from ..run_files import write_atomically, write_jsonl
from .check import check_together
from .expand import ROOT
from .pair import count_gpus, slug

_PROBLEMS = ("problem", "question", "prompt", "input", "instruction")
_ANSWERS = ("answer", "gold", "target", "final_answer", "solution", "output", "label")
_TAG = "<call>12</call>"
_MOST_TOKENS = 2048


@dataclass(frozen=True)
class Model:
    """What is known of a model without its weights.

    Args:
        name (`str`).
        tokenizer (`PreTrainedTokenizerBase`, *optional*), context (`int`, *optional*): `None` for a server's model.
        hidden (`int`): width.
    """

    name: str
    tokenizer: Any = None
    context: int | None = None
    hidden: int = 0

    @classmethod
    def of(cls, name: str, what: str) -> "Model":
        """Reads a model's config and tokenizer."""
        if "://" in name:
            return cls(name)
        check_model(name, what)
        config = PreTrainedConfig.get_config_dict(name)[0]
        text = config.get("text_config") or config
        return cls(
            name, AutoTokenizer.from_pretrained(name), text.get("max_position_embeddings"), text.get("hidden_size", 0)
        )

    @property
    def template(self) -> str:
        """Its chat template, empty without one."""
        return str(getattr(self.tokenizer, "chat_template", None) or "")


def write_pair(student_name: str, teacher_name: str, dataset: str, output: str | None = None):
    """Writes the pair file, by default `recipes/pairs/STUDENT_with_TEACHER.yaml`."""
    path = Path(output or ROOT / "recipes" / "pairs" / f"{slug(student_name)}_with_{slug(teacher_name)}.yaml")
    if path.exists():
        raise FileExistsError(f"{path} is there already; give another --output, or remove it.")
    if dataset in REPORTED:
        raise ValueError(f"{dataset} is a benchmark that results are reported on, not a set to train on.")
    if "://" in student_name:
        raise ValueError("student is a URL, but it is trained here; give a folder or a Hub id.")
    student, teacher = Model.of(student_name, "student"), Model.of(teacher_name, "teacher")
    check_together(student_name, teacher_name)
    write_atomically(path, _text(student, teacher, dataset, path))
    shown = os.path.relpath(path)
    print(
        f"{shown} is written, with a reason beside each choice. Next: relay-trl check {shown}, then relay-trl train {shown}"
    )


def _data(dataset: str, path: Path) -> tuple[list[dict], dict[str, Any], dict[str, Any], str]:
    """Rows to look at, options of the task and of the evaluation, and a remark. A file is split into two beside `path`."""
    if dataset in EMBEDDED:
        return (
            load_rows(dataset, None, "train", 500, 0),
            {"dataset": dataset, "dataset_split": "train"},
            {"benchmarks": [dataset], "split": "test", "limit": 300},
            "drawn from a seed, with a split for tests",
        )
    if kind_of(dataset) in (None, "saved"):
        rows = load_rows(dataset, None, None if dataset in SOURCES else "train", 500, 0)
        test = {"benchmarks": ["math500"]} if dataset in SOURCES else {"benchmarks": [dataset], "split": "test"}
        return (
            rows,
            {"dataset": dataset},
            test,
            "MATH-500 is asked, as the set has no test rows here"
            if dataset in SOURCES
            else "the Hub's test split is asked",
        )
    if not Path(dataset).is_file():
        raise FileNotFoundError(f"dataset: the file {dataset} does not exist.")
    read = list(read_rows(dataset))
    columns = list(dict.fromkeys(name for row in read for name in row))
    found = [{**dict.fromkeys(columns), **row} for row in read]  # a row may lack some of them
    names = [next((c for c in wanted if c in columns), None) for wanted in (_PROBLEMS, _ANSWERS)]
    if None in names:
        raise ValueError(
            f"{dataset} has the columns {columns}; a problem ({', '.join(_PROBLEMS)}) and an answer ({', '.join(_ANSWERS)}) are needed: rename them."
        )
    problem, answer = names
    if len(found) < 20:
        raise ValueError(
            f"{dataset} has {len(found)} rows; at least 20 are needed, a tenth of which is kept for tests."
        )
    seen: dict[str, dict] = {}
    for row in found:
        seen.setdefault(str(row[problem]), row)
    rows = list(seen.values())
    random.Random(0).shuffle(rows)
    held_out = min(500, max(5, len(rows) // 10))
    files = [path.with_name(f"{path.stem}.{part}.jsonl") for part in ("train", "test")]
    for file, part in zip(files, (rows[held_out:], rows[:held_out]), strict=True):
        write_jsonl(part, file)
    columns = (
        {} if problem == "problem" and answer == "answer" else {"problem_column": problem, "answer_column": answer}
    )
    task = {"dataset": os.path.relpath(files[0]), **columns}
    looked = [{**row, "prompt": str(row[problem]), "answer": str(row[answer])} for row in rows[held_out:]]
    remark = f"{len(rows) - held_out} problems of {dataset}; {held_out} others are kept for the test"
    return looked, task, {"benchmarks": [os.path.relpath(files[1])]}, remark


def _marker(rows: list[dict]) -> str | None:
    """What stands before the answer at the end of every worked solution, `None` where there are none."""
    starts = []
    for row in rows:
        solution, answer = str(row.get("solution") or "").strip(), str(row["answer"])
        if not solution.endswith(answer):
            return None
        starts.append(solution[: len(solution) - len(answer)])
    common = os.path.commonprefix([text[::-1] for text in starts])[::-1] if starts else ""
    return common[-8:] or None


def _text(student: Model, teacher: Model, dataset: str, path: Path) -> str:
    rows, task, test, remark = _data(dataset, path)
    lengths = [len(student.tokenizer(str(row["prompt"]), add_special_tokens=False)["input_ids"]) for row in rows]
    marker = _marker(rows)
    is_known = teacher.tokenizer is not None
    same = is_known and student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
    template = "{problem}" if marker else BOXED_TEMPLATE
    longest = max(lengths) + len(student.tokenizer(template)["input_ids"]) + (64 if student.template else 0)
    context = min(c for c in (student.context, teacher.context, 10**6) if c is not None)
    # A prompt may be rendered longer by the teacher's template
    completion = min(_MOST_TOKENS, context - 2 * longest)
    if completion < 16:
        raise ValueError(
            f"The longest prompt has about {longest} tokens, and the smaller context {context}: no room is left for an answer. Take models with longer contexts, or shorter problems."
        )
    is_unspelt = (
        student.tokenizer.unk_token_id is not None
        and student.tokenizer.unk_token_id in student.tokenizer(_TAG)["input_ids"]
    )
    thinking = [m.name for m in (student, teacher) if "enable_thinking" in m.template]
    templates = f"the student has {'a' if student.template else 'no'} chat template, the teacher {'one of its own' if teacher.template else 'none' if is_known else 'that of its server'}"
    vocabularies = (
        "one vocabulary: token ids go back and forth"
        if same
        else "two vocabularies, or one that is not known here: text goes back and forth"
    )
    head = [
        f"# Written by relay-trl init --student {student.name} --teacher {teacher.name} --dataset {dataset}",
        f"# Launch:   relay-trl train {os.path.relpath(path)}       (--dry-run first; relay-trl check says what would stop it)",
        f"# Models:   {vocabularies}; {templates};",
        f"#           thinking is switched off for {' and '.join(thinking)}"
        if thinking
        else "#           neither template has a switch for thinking",
        f"#           contexts: student {student.context or 'not known'}, teacher {teacher.context or 'not known'} tokens.",
    ]
    lines = [
        f"student: {json.dumps(student.name)}",
        f"teacher: {json.dumps(teacher.name)}",
        f"output_dir: {json.dumps(f'runs/{path.stem}')}",
        "task:",
        *(
            f"  {key}: {json.dumps(value)}" + (f"      # {remark}" if key == "dataset" else "")
            for key, value in task.items()
        ),
        f"  prompt_template: {json.dumps(template)}",
        f"  max_prompt_length: {longest}      # the longest of {len(rows)} problems has {max(lengths)} tokens, the template not counted",
        "  skip_long_prompts: true",
        f"  max_completion_length: {completion}      # at most {_MOST_TOKENS}, and what the smaller context leaves beside the prompt",
    ]
    if marker:
        lines.append(
            f"  answer_marker: {json.dumps(marker)}      # stands before the answer in every solution of the data; otherwise \\boxed{{}}"
        )
    if is_unspelt:
        lines.append("  add_call_tokens: true      # the student's vocabulary cannot spell the tags")
    gpus = count_gpus()
    lines += _for_gpus(path, gpus, test) if gpus else _for_cpu(student, len(rows), longest, completion, test)
    return "\n".join([*head, *lines]) + "\n"


def _for_gpus(path: Path, gpus: int, test: dict[str, Any]) -> list[str]:
    base = os.path.relpath(ROOT / "recipes" / "pairs" / "qwen3_0.6b.yaml", path.parent)
    return [
        f"base: {json.dumps(base)}      # the paper's settings and its profiles for 1, 2 and 8 GPUs; this machine has {gpus}",
        "warmup: {dataset_size: null, decontaminate: null}",
        "filter: null      # all problems; {} has the teacher keep those that it can solve, as in the paper",
        f"evaluate: {json.dumps(test)}",
    ]


def _for_cpu(student: Model, count: int, longest: int, completion: int, test: dict[str, Any]) -> list[str]:
    """Every stage, small: this machine has no GPU."""
    is_tiny = student.hidden < 256
    sizes = "a small model learns fast" if is_tiny else "the paper's, as for any model of its size"
    precision = [
        "  bf16: false      # no GPU",
        "  gradient_checkpointing: false",
        "  dataloader_pin_memory: false",
        "  report_to: none",
    ]
    return [
        "warmup:",
        f"  dataset_size: {min(count, 1024)}",
        "  samples: 2",
        "  num_orders: 2      # n from 1 to 90: answers here are short"
        if completion < 400
        else "  num_orders: 3      # n from 1 to 900",
        "sft:",
        f"  max_length: {longest + completion + 64}      # a prompt, an answer and its calls",
        "  num_train_epochs: 1",
        "  per_device_train_batch_size: 8",
        f"  learning_rate: {'2.0e-3' if is_tiny else '1.0e-5'}      # {sizes}",
        '  save_strategy: "no"',
        *precision,
        "grpo:",
        f"  validation_size: {max(4, min(64, count // 10))}",
        "  num_generations: 8",
        "  per_device_train_batch_size: 32      # 4 problems x 8 rollouts a step",
        "  max_steps: 30      # to see whether it learns; more once it does",
        f"  learning_rate: {'5.0e-4' if is_tiny else '1.0e-6'}      # {sizes}",
        '  eval_strategy: "no"',
        "  save_steps: 10",
        "  save_total_limit: 2",
        "  logging_steps: 1",
        *precision,
        "evaluate:",
        *(f"  {key}: {json.dumps(value)}" for key, value in test.items()),
        "  methods: [relay, relay_no_teacher, teacher]",
        "baselines:",
        "  untrained: {warmup: null, sft: null, grpo: null, evaluate: {methods: [student]}}",
        "compare: [untrained]",
        "hardware:",
        "  cpu: {launch: accelerate_configs/cpu.yaml}      # no GPU here; both models in the stage's own process",
    ]
