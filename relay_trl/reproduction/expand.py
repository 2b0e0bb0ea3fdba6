"""Makes stages from a pair file: which recipes run, with which settings and inputs, and where their results go.

Owns the connections: whose output is whose input, what a comparison shares with the pair's own run, and the YAML of a stage,
which can also be run by hand. `running.py` runs the stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from shlex import join, split
from typing import Any

import yaml

from ..evaluation.config import FROM_STUDENT
from ..evaluation.methods import load_methods
from ..options import TeacherFields
from .pair import MAIN, Pair
from .sections import FIRST, SECTIONS, options_of

ROOT = Path(__file__).parents[2]

NEEDS = {
    "sft": ("warmup",),
    "second_sft": ("sft", "second_warmup"),
    "grpo": ("second_sft", "sft", "filter"),
    "evaluate": ("grpo", "second_sft", "sft", "citer"),
    "push": ("grpo",),
}
"""For each section, the sections whose results it needs, if the pair has them. An evaluation takes the student's last stage."""

_SEEDED = ("warmup", "sft", "second_warmup", "second_sft", "grpo", "citer")
ROWS = ("warmup", "second_warmup")
"""Sections whose result is a file of rows."""
_FOLDERS = {"filter": "filtered"}
_RESULTS = {
    "sft": "trainer_state.json",
    "second_sft": "trainer_state.json",
    "filter": "train.jsonl",
    "grpo": "trainer_state.json",
    "citer": "citer_router.json",
    "evaluate": "results.json",
}
"""For each recipe, the file that it writes last."""

_NOT_ASKED = {"max_prompt_length", "skip_long_prompts", *FROM_STUDENT} - {"teacher"}
"""Options that an evaluation takes from the student's relay config or from the benchmark and not from the task."""


@dataclass(frozen=True)
class Stage:
    """One recipe with its settings.

    Args:
        name (`str`): unique in a pair, such as `grpo` or `grpo_simple`.
        section (`str`): of the pair file.
        settings (`dict`): the recipe's options.
        folder (`Path`): the pair's `output_dir`.
        result (`Path`, *optional*): the file that is written last. A stage is finished if it exists. `None`: runs every time.
        needs (`tuple[str, ...]`): stages whose results it needs.
        launch (`tuple[str, ...]`): what follows `--config_file` of `accelerate launch`; empty for other recipes.
        devices (`str`, *optional*): its `CUDA_VISIBLE_DEVICES`.
        serve (`str`, *optional*): options of its teacher's server; `None`: no server is started.
        teacher_devices (`str`, *optional*): that server's `CUDA_VISIBLE_DEVICES`.
        run (`str`): the run that it belongs to: the pair's own (`relay`) or a comparison.
        label (`str`, *optional*): the run's name in tables.
    """

    name: str
    section: str
    settings: dict[str, Any]
    folder: Path
    result: Path | None
    needs: tuple[str, ...] = ()
    launch: tuple[str, ...] = ()
    devices: str | None = None
    serve: str | None = None
    teacher_devices: str | None = None
    run: str = MAIN
    label: str | None = None

    @property
    def config(self) -> Path:
        """Its YAML."""
        return self.folder / "configs" / f"{self.name}.yaml"

    @property
    def written(self) -> Path:
        """Its result, of a stage that has one."""
        assert self.result is not None
        return self.result

    def words(self) -> list[str]:
        """The command after `python`, without what depends on the machine."""
        start = ["-m", "accelerate.commands.launch", "--config_file", *self.launch] if self.launch else []
        return [*start, here_or_shipped(f"recipes/{SECTIONS[self.section].name}.py"), "--config", str(self.config)]

    def line(self) -> str:
        """The command as one would type it."""
        words = self.words()
        start = ["accelerate", "launch", *words[2:]] if self.launch else ["python", *words]
        return (f"CUDA_VISIBLE_DEVICES={self.devices} " if self.devices else "") + join(start)

    def text(self, server: str | None = None) -> str:
        """The YAML. Its header has the launch command, and the command of the teacher's server if one is needed."""
        head = [f"# Launch:  {self.line()}"]
        if server:
            head.insert(0, f"# Teacher: {server}")
        return "\n".join(head) + "\n" + yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True, width=10**6)


@dataclass
class _Run:
    """A run while it is expanded: its sections, and for each the layer that changed it last."""

    pair: Pair
    names: list[str]
    sections: dict[str, dict[str, Any]]
    layer: dict[str, int]
    seed: int | None
    label: str | None
    stages: dict[str, Stage] = field(default_factory=dict)


def expand(
    pair: Pair, layers: Sequence[tuple[str, Mapping[str, Any]]] = (), seed: int | None = None, name: str | None = None
) -> list[Stage]:
    """The stages of one run, in their order. Runs that have a stage in common give it the same name and settings.

    Args:
        pair ([`Pair`]).
        layers (`Sequence[tuple[str, Mapping]]`): names and changes of comparisons, each applied after those before it; empty for
            the pair's own run.
        seed (`int`, *optional*): of the trainings, which then have their own folder.
        name (`str`, *optional*): of the run, for its evaluation; `None` takes the last layer's.
    """
    for one, needed in (("second_warmup", "second_sft"), ("second_sft", "sft")):
        if one in pair.sections and needed not in pair.sections:
            raise ValueError(f"{pair.path} has a section {one} but none for {needed}; add that, or leave {one} out.")
    sections = {key: dict(value) for key, value in pair.sections.items() if key != "citer"}
    layer = dict.fromkeys(SECTIONS, 0)
    label = None
    for number, (_, change) in enumerate(layers, start=1):
        label = change.get("label")
        for section in SECTIONS:
            if section in change:
                layer[section] = number
                sections.pop(section, None) if change[section] is None else sections.update(
                    {section: {**sections.get(section, pair.sections.get(section, {})), **change[section]}}
                )
    for second, first in FIRST.items():
        if not {second, first, "second_sft"} <= sections.keys():  # left out with what it is for
            sections.pop(second, None)
            continue
        below = sections[first] | pair.overrides.get(first, {})
        sections[second] = {k: below[k] for k in below if k not in ("output", "output_dir")} | sections[second]
        layer[second] = max(layer[first], layer[second])
    run = _Run(pair, [MAIN, *(each for each, _ in layers)], sections, layer, seed, label)
    name = name or run.names[-1]
    for section in SECTIONS:
        if section in sections and not (section == "push" and layers):
            run.stages[section] = _stage(run, section, name)
    return list(run.stages.values())


def _stage(run: _Run, section: str, name: str) -> Stage:
    pair = run.pair
    inputs = [run.stages[each] for each in NEEDS.get(section, ()) if each in run.stages]
    if section == "evaluate":  # only the one trained last
        inputs = inputs[:1]
    # A stage that is left out counts as a change of those that would need it
    run.layer[section] = max(run.layer[each] for each in (section, *NEEDS.get(section, ())))
    is_seeded = run.seed is not None and (section in _SEEDED or (section == "evaluate" and bool(inputs)))
    seed = f"seed_{run.seed}" if is_seeded else ""
    if section == "evaluate":
        folder = pair.output_dir / "evaluation" / (f"{name}_{seed}" if is_seeded else name)
        title = folder.name
    else:
        changed = run.names[run.layer[section]] if run.layer[section] else ""
        start = _FOLDERS.get(section, section)
        is_told = changed == section or changed.startswith(f"{section}_")
        title = changed if is_told else f"{start}_{changed}" if changed else start
        folder = pair.output_dir / seed / title
    wired = _wired(run, section, folder)
    settings = {**_of_task(run, section, bool(inputs)), **wired, **run.sections[section]}
    if run.seed is not None and section in _SEEDED:
        settings["seed"] = run.seed
        if section == "citer":  # other problems for each seed, and none of the warm-up's and of GRPO's
            settings["dataset_seed"] = 100 + run.seed
    settings |= pair.overrides.get(section, {})
    serve = _connect(run, section, settings)
    settings = {key: value for key, value in settings.items() if value is not None}
    output = Path(settings.get("output") or settings.get("output_dir") or folder)
    result = None if section == "push" else output if section in ROWS else output / _RESULTS[section]
    prefix = "evaluate_" if section == "evaluate" else ""
    return Stage(
        f"{prefix}{title}" + (f"_{seed}" if is_seeded and not prefix else ""),
        section,
        settings,
        pair.output_dir,
        result,
        tuple(stage.name for stage in inputs),
        _launch(_said(pair.profile.launch, section) or "") if SECTIONS[section].is_launched else (),
        _said(pair.profile.devices, section),
        serve,
        pair.profile.devices.get("teacher"),
        name,
        run.label,
    )


def _said(profile: Mapping[str, str], section: str) -> str | None:
    """What a hardware profile says of a section; of a second stage, what it says of the first."""
    return profile.get(section, profile.get(FIRST.get(section, section)))


def here_or_shipped(path: str) -> str:
    """A path of this repository as seen from the current folder."""
    return path if Path(path).exists() or not (ROOT / path).exists() else str(ROOT / path)


def _launch(line: str) -> tuple[str, ...]:
    config, *more = split(line)
    return here_or_shipped(config), *more


def _wired(run: _Run, section: str, folder: Path) -> dict[str, Any]:
    """The options that follow from the other stages."""
    pair, stages = run.pair, run.stages
    made = {
        name: str(stage.result if name in ROWS else stage.result.parent)
        for name, stage in stages.items()
        if stage.result
    }
    if section in ROWS:
        teacher = {"teacher": pair.teacher} if _asks(run, section) else {}
        return {"student": pair.student, **teacher, "output": f"{folder}.jsonl"}
    if section in ("sft", "second_sft"):
        rows = made.get("second_warmup" if section == "second_sft" else "warmup", made.get("warmup"))
        wired = {"model_name_or_path": made.get("sft", pair.student), "output_dir": str(folder)}
        return wired | {"resume_from_checkpoint": "auto"} | ({"warmup_data": rows} if rows else {})
    warm = made.get("second_sft") or made.get("sft") or pair.student
    if section == "grpo":
        wired = {"model_name_or_path": warm, "teacher": pair.teacher}
        data = {"dataset": str(stages["filter"].result)} if "filter" in stages else {}
        return wired | data | {"output_dir": str(folder), "resume_from_checkpoint": "auto"}
    if section == "push":
        evaluations = [str(pair.output_dir / "evaluation" / MAIN)] if "evaluate" in stages else []
        return {"model": made.get("grpo"), "evaluations": evaluations or None}
    student = (made.get("grpo") or warm) if section == "evaluate" else pair.student
    router = {"citer_router": made["citer"]} if section == "evaluate" and "citer" in made else {}
    models = {"teacher": pair.teacher} if section == "filter" else {"student": student, "teacher": pair.teacher}
    return {**models, "output_dir": str(folder), **router}


def _asks(run: _Run, section: str) -> bool:
    """Whether a section may ask the teacher: of all warm-ups only a search does."""
    settings = {**run.sections[section], **run.pair.overrides.get(section, {})}
    return section not in ROWS or settings.get("calls") == "searched"


def _of_task(run: _Run, section: str, has_input: bool) -> dict[str, Any]:
    """Those options of the task that the stage's recipe has."""
    left_out = (
        {"skip_long_prompts"} if section in ("sft", "second_sft") else set()
    )  # no rows of the warm-up are left out
    if not _asks(run, section):
        left_out = {item.name for item in fields(TeacherFields)}
    if section == "evaluate" and ("grpo" in run.stages or "sft" in run.stages):
        left_out = _NOT_ASKED - (set() if "grpo" in run.stages else {"max_completion_length"})  # no warm-up records it
    if section == "evaluate":
        left_out = left_out | {"max_prompt_length", "skip_long_prompts"}
    if section == "grpo" and "filter" in run.stages:  # the filter's file has its own columns
        left_out = {"dataset_split", "dataset_size", "problem_column", "answer_column"}
    known = options_of(section) - left_out
    return {key: value for key, value in run.pair.task.items() if key in known}


def _connect(run: _Run, section: str, settings: dict[str, Any]) -> str | None:
    """Sets the address of the teacher's server, if the profile has one; returns the server's options."""
    teacher = settings.get("teacher")
    if not teacher:
        return None
    asked = True
    if section == "evaluate":
        asked = any(method.has_teacher for method in load_methods(settings.get("methods") or ["relay"]))
    serve = _said(run.pair.profile.serve, section) if "://" not in teacher and asked else None
    if serve is not None:
        settings["teacher"] = f"http://127.0.0.1:{run.pair.profile.port}/v1"
    if "://" in settings["teacher"] and settings.get("teacher_backend") in ("vllm", "transformers"):
        settings["teacher_backend"] = None  # it was for a teacher in the stage's own process
    return serve


def server_words(pair: Pair, options: str) -> list[str]:
    """The command of the teacher's server."""
    command = pair.profile.server.replace("{teacher}", pair.teacher).replace("{port}", str(pair.profile.port))
    return [*split(command), *split(options)]
