"""Finds what would stop a pair file, before a model is loaded: models, vocabularies, contexts, data, hardware, servers.

Owns the checks that need both models or the whole pair file. The checks of each recipe are made here too.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from ..cli.endings import EXPECTED
from ..cli.parser import RecipeParser
from ..data.embedded import EMBEDDED
from ..data.files import kind_of
from ..data.registry import SOURCES
from ..engines.checks import check_context, check_model
from ..options import broken_groups
from .expand import ROOT, Stage
from .pair import Pair, count_gpus
from .running import check_stages
from .sections import load_classes
from .teacher_server import check_port, fault_at


def check_hardware(pair: Pair):
    """Refuses a profile for more GPUs than there are."""
    here = count_gpus()
    if pair.profile.gpus > here:
        raise ValueError(
            f"The profile {pair.profile.name} needs {pair.profile.gpus} GPUs, and this process sees {here}; take another one with "
            "--hardware, or look at this one with --dry-run."
        )


def refuse(pair: Pair, stages: Sequence[Stage], wanted: Sequence[str] | None):
    """Raises the first of [`problems`] as an error."""
    for problem in problems(pair, stages, wanted):
        raise ValueError(problem)


def problems(pair: Pair, stages: Sequence[Stage], wanted: Sequence[str] | None, is_thorough: bool = False) -> list[str]:
    """What would stop the stages, one sentence for each problem.

    Args:
        pair ([`Pair`]).
        stages (`Sequence[Stage]`): all stages.
        wanted (`Sequence[str]`, *optional*): the sections that run; `None`: all.
        is_thorough (`bool`, defaults to `False`): also make every recipe's own checks, and ask servers.
    """
    found: list[str] = []

    def attempt(do: Callable[[], object]):
        try:
            do()
        except EXPECTED as error:
            sentence = " ".join(str(error).split())
            if sentence not in found:
                found.append(sentence)

    running = [
        stage
        for stage in stages
        if (wanted is None or stage.section in wanted) and not (stage.result is not None and stage.result.exists())
    ]
    asks_teacher = any(stage.settings.get("teacher") for stage in running)
    attempt(lambda: check_hardware(pair))
    if running:
        attempt(lambda: check_model(pair.student, "student"))
    if asks_teacher and "://" not in pair.teacher:
        attempt(lambda: check_model(pair.teacher, "teacher"))
    if not found and asks_teacher:
        attempt(lambda: check_together(pair.student, pair.teacher))
    for stage in running:
        attempt(lambda stage=stage: _check_data(stage))
        attempt(lambda stage=stage: _check_engines(pair, stage))
        attempt(lambda stage=stage: _check_room(pair, stage))
        if stage.launch:
            attempt(lambda stage=stage: _check_launch(stage))
    attempt(lambda: check_stages(stages, wanted))
    if any(stage.serve is not None for stage in running):
        attempt(lambda: check_port(pair.profile.port))
    if is_thorough:
        for stage in running:
            if processes_of(stage) == 1:
                attempt(lambda stage=stage: _check_settings(stage))
        if asks_teacher and "://" in pair.teacher:
            for url in pair.teacher.split():
                attempt(lambda url=url: _check_server(url))
    return found


def check_together(student_name: str, teacher_name: str):
    """Refuses a student and a teacher that cannot exchange text.

    Raises:
        ValueError: with the reason and a remedy.
    """
    if "://" in teacher_name:
        return
    student, teacher = _tokenizer(student_name), _tokenizer(teacher_name)
    if student.get_vocab() == teacher.get_vocab():
        return
    for writer, reader, names in (
        (teacher, student, ("teacher", "student")),
        (student, teacher, ("student", "teacher")),
    ):
        unread = [c for c in _characters(writer) if _is_unknown(reader, c)]
        if unread:
            raise ValueError(
                f"{student_name} and {teacher_name} cannot work together: the {names[0]} writes {', '.join(map(repr, unread[:5]))}, for "
                f"which the {names[1]}'s vocabulary has no token. Take two models of one vocabulary, or a {names[1]} whose "
                "tokenizer spells any text, as all byte-level ones do."
            )


def _tokenizer(model: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def _characters(tokenizer) -> list[str]:
    """The printable characters of ASCII that a tokenizer can write."""
    return [c for c in map(chr, range(33, 127)) if not _is_unknown(tokenizer, c)]


def _is_unknown(tokenizer, character: str) -> bool:
    ids = tokenizer(character, add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids


def _check_data(stage: Stage):
    for key in ("dataset", "validation"):
        name = stage.settings.get(key)
        if name is None or name in EMBEDDED or name in SOURCES or "/filtered" in str(name):  # which a stage makes
            continue
        if kind_of(name) and not Path(name).exists():
            raise FileNotFoundError(f"{stage.name}: {key} is {name}, and there is no such file.")
    for name in stage.settings.get("benchmarks") or ():
        if kind_of(name) and not Path(name).exists():
            raise FileNotFoundError(f"{stage.name}: benchmarks names {name}, and there is no such file.")


def _check_engines(pair: Pair, stage: Stage):
    backends = [key for key in ("student_backend", "teacher_backend") if stage.settings.get(key) == "vllm"]
    needs = [*backends, *(["use_vllm"] if stage.settings.get("use_vllm") else [])]
    needs += ["the teacher's server"] if stage.serve is not None and "vllm" in pair.profile.server else []
    if needs and importlib.util.find_spec("vllm") is None:
        raise ImportError(
            f"{stage.name}: {needs[0]} needs vLLM, which is not installed; `pip install relay_trl[vllm]`."
        )


def _check_room(pair: Pair, stage: Stage):
    """A completion of the largest length must fit into both contexts. Prompts are checked when they are read."""
    completion = stage.settings.get("max_completion_length")
    for model in dict.fromkeys((pair.student, stage.settings.get("teacher") or pair.student)):
        if completion is not None and Path(model).is_dir():
            check_context(model, 1, completion)


def processes_of(stage: Stage) -> int:
    """The number of processes of a stage."""
    words = list(stage.launch)
    if "--num_processes" in words:
        return int(words[words.index("--num_processes") + 1])
    if not words or not (path := find(words[0])).is_file():
        return 1
    return int(yaml.safe_load(path.read_text(encoding="utf-8")).get("num_processes", 1))


def find(path: str) -> Path:
    """A file of the repository, from the working directory or from the package's place."""
    return Path(path) if Path(path).exists() else ROOT / path


def _check_launch(stage: Stage):
    path = find(stage.launch[0])
    if not path.is_file():
        raise FileNotFoundError(f"{stage.name}: launch names {stage.launch[0]}, and there is no such file.")
    if "deepspeed_config" in path.read_text(encoding="utf-8") and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            f"{stage.name}: {path} needs DeepSpeed, which is not installed; `pip install relay_trl[deepspeed]`."
        )
    if stage.section == "grpo":
        given = stage.settings
        steps = given.get("steps_per_generation") or given.get("gradient_accumulation_steps", 1)
        batch, group = given.get("per_device_train_batch_size", 8), given.get("num_generations", 8)
        if said := broken_groups(batch, processes_of(stage), steps, group):
            raise ValueError(f"{stage.name}: {said}; change one of them.")


def _check_settings(stage: Stage):
    """The recipe's own checks of its settings."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "settings.yaml")
        path.write_text(stage.text(), encoding="utf-8")
        try:
            RecipeParser(load_classes(stage.section)).parse(["--config", str(path)])
        except EXPECTED as error:
            raise ValueError(f"{stage.name}: {error}") from error


def _check_server(url: str):
    if error := fault_at(f"{url.rstrip('/')}/models", 10):
        raise ValueError(
            f"The teacher's server {url} does not answer ({error}); start it, or give another --teacher."
        ) from error
