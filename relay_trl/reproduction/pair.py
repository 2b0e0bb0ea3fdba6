"""The pair file: a student, its teacher, their task, and what each stage changes of the defaults.

Owns its keys, how one file is based on another, and the order in which settings override each other: the base file, the file
itself, the hardware profile, a comparison's changes, the command line. `expand.py` makes the stages.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .sections import SECTIONS, check_known, options_of

MODELS = ("student", "teacher")
_PROFILE = ("gpus", "gpu_memory", "launch", "devices", "serve", "server", "port")
_KEYS = (
    *("about", "base", "output_dir", "task", "hardware", "baselines", "compare", "candidates", "choose_on", "seeds"),
    *MODELS,
    *SECTIONS,
)
_VARIATION = ("label", "over", *SECTIONS)
MAIN, PAIR = "relay", "pair"  # names of the pair's own run, and of the file's sections as what a comparison is `over`
_SERVER = "python -m vllm.entrypoints.openai.api_server --model {teacher} --port {port}"


@dataclass(frozen=True)
class Profile:
    """How a pair runs on some hardware.

    Args:
        name (`str`): its name in the pair file.
        gpus (`int`, defaults to `0`): GPUs that it needs.
        gpu_memory (`float`, defaults to `80`): GiB of one GPU, without the part of a teacher that shares it; for the plan.
        launch (`dict[str, str]`): by section, what follows `accelerate launch --config_file`: a file, and options.
        devices (`dict[str, str]`): by section, and for `teacher`, its `CUDA_VISIBLE_DEVICES`; all GPUs by default.
        serve (`dict[str, str]`): by section, the options of the teacher's server. In other sections the teacher is a model in
            the stage's own process.
        server (`str`): the command of that server, with `{teacher}` and `{port}`.
        port (`int`, defaults to `8001`).
    """

    name: str
    gpus: int = 0
    gpu_memory: float = 80.0
    launch: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    serve: Mapping[str, str] = field(default_factory=dict)
    server: str = _SERVER
    port: int = 8001


@dataclass(frozen=True)
class Pair:
    """A pair file with a profile and the changes of the command line.

    Args:
        path (`Path`): the file.
        student, teacher (`str`): folder, Hub id, or (the teacher) the URL of a server.
        output_dir (`Path`): folder for all results.
        about (`str`): the purpose of the file.
        task (`dict`): options for all stages that have them.
        sections (`dict[str, dict]`): by stage, its own options.
        overrides (`dict[str, dict]`): by stage, the options of the command line.
        baselines (`dict[str, dict]`): by name, the changes of a comparison; `None` for a section leaves that stage out, and
            `over` names what is changed: another baseline, a candidate (the chosen one by default), or `pair`.
        compare (`list[str]`): the baselines that run by default.
        seeds (`list[int]`): the seeds that each run is trained with by default; empty: once, with the file's.
        candidates (`dict[str, dict]`), choose_on (`dict`): settings to choose from on validation rows, and the options of
            the evaluation for this choice.
        profile ([`Profile`]).
    """

    path: Path
    student: str
    teacher: str
    output_dir: Path
    about: str
    task: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    overrides: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    compare: list[str]
    seeds: list[int]
    candidates: dict[str, dict[str, Any]]
    choose_on: dict[str, Any]
    profile: Profile


def load_pair(
    path: str | Path,
    hardware: str | None = None,
    changes: Sequence[str] = (),
    student: str | None = None,
    teacher: str | None = None,
    gpus: int | None = None,
) -> Pair:
    """Reads a pair file.

    Args:
        path (`str` or `Path`).
        hardware (`str`, *optional*): the profile; `None` takes the largest one for which there are enough GPUs.
        changes (`Sequence[str]`): `section.option=value`, or `option=value` for a key of the file itself or an option that
            only one stage has.
        student, teacher (`str`, *optional*): instead of the file's.
        gpus (`int`, *optional*): number of GPUs; `None` counts them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is unknown or missing, or the file has no such profile.
    """
    given = read(Path(path))
    overrides = _changes(changes, given)
    given |= {key: value for key, value in overrides.pop("", {}).items()}
    given["task"] |= overrides.pop("task", {})
    given |= {name: model for name, model in (("student", student), ("teacher", teacher)) if model is not None}
    for name in MODELS:
        if not isinstance(given.get(name), str):
            raise ValueError(f"{path}: {name} is {given.get(name)!r}; give a folder or a Hub id{_OR_URL[name]}.")
    if "://" in given["student"]:
        raise ValueError(f"{path}: student is a URL, but it is trained here; give a folder or a Hub id.")
    profile = _choose(given.pop("hardware"), hardware, gpus, path)
    of_profile = {name: profile.pop(name, None) or {} for name in SECTIONS}
    sections = {name: {**given[name], **of_profile[name]} for name in SECTIONS if given.get(name) is not None}
    names = {name: slug(given[name], given["task"]) for name in MODELS}
    words = _filled({"output_dir": given["output_dir"], **sections}, names, given)
    return Pair(
        Path(path),
        given["student"],
        given["teacher"],
        Path(words.pop("output_dir")),
        str(given.get("about") or ""),
        given["task"],
        words,
        overrides,
        given["baselines"],
        list(given["compare"]),
        list(given["seeds"]),
        given["candidates"],
        given["choose_on"],
        Profile(**profile),
    )


_OR_URL = {"student": "", "teacher": ", or the URL of a server"}


def read(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A pair file merged with the files that it is based on. All keys are checked, and all mappings exist."""
    if not path.is_file():
        where = f", which {below[-1]} is based on" if below else ""
        raise FileNotFoundError(f"The pair file {path}{where} does not exist.")
    if path in below:
        raise ValueError(f"The pair file {path} is based on itself, by way of {below[-1]}.")
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The pair file {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(own, dict):
        raise ValueError(f"The pair file {path} must be a mapping with student, teacher and a section for each stage.")
    check_known(own, _KEYS, str(path))
    _check(own, path)
    base = own.pop("base", None)
    lower = read(path.parent / base, (*below, path)) if base else _empty()
    for key, value in own.items():
        if key == "hardware":
            for name, profile in (value or {}).items():
                merged = _merged_profile(lower["hardware"].get(name, {}), profile)
                lower["hardware"].pop(name, None)
                lower["hardware"] |= {} if profile is None else {name: merged}
        elif key in SECTIONS or key in ("task", "baselines", "candidates"):
            lower[key] = None if value is None else {**(lower.get(key) or {}), **value}
        else:
            lower[key] = value
    return lower


def _empty() -> dict[str, Any]:
    named = {"hardware": {}, "task": {}, "baselines": {}, "candidates": {}, "choose_on": {}, "compare": [], "seeds": []}
    return named | {"output_dir": "runs/{student}_with_{teacher}"}


def _merged_profile(below: Mapping[str, Any], above: Mapping[str, Any] | None) -> dict[str, Any]:
    merged = dict(copy.deepcopy(below))
    for key, value in (above or {}).items():
        is_mapping = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if is_mapping else value
    return merged


def _check(own: Mapping[str, Any], path: Path):
    for key in ("task", "hardware", "baselines", "candidates", "choose_on", *SECTIONS):
        if own.get(key) is not None and not isinstance(own[key], dict):
            raise ValueError(f"{path}: {key} is {own[key]!r}; it must be a mapping.")
    for key, kind, what in (("compare", str, "names"), ("seeds", int, "whole numbers")):
        if not isinstance(own.get(key, []), list) or not all(isinstance(each, kind) for each in own.get(key, [])):
            raise ValueError(f"{path}: {key} is {own[key]!r}; it must be a list of {what}.")
    for name in SECTIONS:
        check_known(own.get(name) or (), options_of(name), f"{path}: the section {name}")
    everything = frozenset().union(*(options_of(name) for name in SECTIONS))
    check_known(own.get("task") or (), everything, f"{path}: the section task")
    for kind, known in (("hardware", (*_PROFILE, *SECTIONS)), ("baselines", _VARIATION), ("candidates", _VARIATION)):
        for name, inner in (own.get(kind) or {}).items():
            if inner is None and kind == "hardware":
                continue
            if not isinstance(inner, dict):
                raise ValueError(f"{path}: {kind}.{name} is {inner!r}; it must be a mapping.")
            check_known(inner, known, f"{path}: {kind}.{name}")
            for section in set(inner) & set(SECTIONS):
                check_known(inner[section] or (), options_of(section), f"{path}: {kind}.{name}.{section}")
            for key in ("devices", "serve"):
                check_known(inner.get(key) or (), (*SECTIONS, "teacher"), f"{path}: {kind}.{name}.{key}")
    check_known(own.get("choose_on") or (), options_of("evaluate"), f"{path}: choose_on")


def _choose(profiles: dict[str, dict], wanted: str | None, gpus: int | None, path: str | Path) -> dict[str, Any]:
    if wanted is None:
        here = count_gpus() if gpus is None else gpus
        fitting = {name: profile.get("gpus", 0) for name, profile in profiles.items() if profile.get("gpus", 0) <= here}
        if not fitting:
            needed = ", ".join(f"{name} ({profile.get('gpus', 0)} GPUs)" for name, profile in profiles.items())
            raise ValueError(
                f"{path} has no hardware profile for this machine, which has {here} GPUs; it has {needed or 'none'}. Add one, "
                "or look at one with --hardware and --dry-run."
            )
        wanted = max(fitting, key=fitting.__getitem__)
    if wanted not in profiles:
        raise ValueError(f"{path} has no hardware profile {wanted!r}; it has {', '.join(profiles) or 'none'}.")
    profile = copy.deepcopy(profiles[wanted])
    launch = profile.get("launch", "accelerate_configs/cpu.yaml")
    if isinstance(launch, str):
        launch = {name: launch for name, recipe in SECTIONS.items() if recipe.is_launched}
    return {**profile, "name": wanted, "launch": launch}


def count_gpus() -> int:
    """GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


def _changes(changes: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The changes of the command line by section; the empty name has the pair's own keys."""
    found: dict[str, dict[str, Any]] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        section, dot, option = key.rpartition(".")
        if not equals or key.startswith("-"):
            raise ValueError(
                f"{change!r} is no change of a setting; write section.option=value, such as grpo.max_steps=100."
            )
        if not dot and option in ("output_dir", "about", "compare"):
            section = ""
        elif not dot:
            knowing = [name for name in SECTIONS if given.get(name) is not None and option in options_of(name)]
            if option in given["task"]:
                section = "task"
            elif len(knowing) == 1:
                section = knowing[0]
            elif knowing:
                raise ValueError(
                    f"{change}: {' and '.join(knowing)} have an option {option}; say which, as {knowing[-1]}.{change}, or "
                    f"task.{change} for all of them."
                )
            else:
                check_known(
                    [option], {o for n in SECTIONS if given.get(n) is not None for o in options_of(n)}, "The pair"
                )
        elif section == "task":
            check_known([option], frozenset().union(*map(options_of, SECTIONS)), "The section task")
        else:
            check_known([section], SECTIONS, "The pair")
            check_known([option], options_of(section), f"The section {section}")
        try:
            found.setdefault(section, {})[option] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{change}: the value is no valid YAML ({' '.join(str(error).split())}).") from error
    return found


def slug(model: str, task: Mapping[str, Any] | None = None) -> str:
    """A model's name in a form for folder names."""
    name = str((task or {}).get("teacher_model") or model) if "://" in model else model
    name = re.sub(r"^\w+://", "", name).rstrip("/")
    last = name.replace("/", "_") if "://" in model else name.rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", last)


def _filled(values: Any, names: Mapping[str, str], given: Mapping[str, Any]) -> Any:
    """`values` with `{student}` and `{teacher}` in paths replaced by the models' names."""
    if isinstance(values, dict):
        return {key: value if "template" in key else _filled(value, names, given) for key, value in values.items()}
    if isinstance(values, str):
        for name in MODELS:
            values = values.replace(f"{{{name}}}", names[name])
    return values
