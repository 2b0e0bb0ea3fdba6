"""A plan of trainings and evaluations on an embedded pair: warm-ups, candidates for the relay's settings, runs, seeds.

Owns the contents of a plan, and the names and options of its stages. `stages.py` starts recipes; `recipes/reproduce.py` has
the order.
"""

import json
from concurrent.futures import Executor
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .stages import stage

PASSED_ON = {"train_citer": "citer_router"}
"""Recipes beside grpo_relay that train something for the untrained student, and the option of the evaluation for it. The file
that the recipe writes last has the same name."""


@dataclass
class Reproduction:
    """A plan's YAML and its stages. A stage whose result exists is not run again.

    Args:
        output_dir (`str`): folder for all results.
        pair (`str`): the folder with `student` and `teacher`.
        validation_size (`int`), test_size (`int`): problems.
        ends (`list[str]`): methods that need no training, `student` and `teacher` among them.
        warmups (`dict[str, dict]`): by name, changes of build_warmup.yaml (`build`) and sft_warmup.yaml (`sft`), and the
            warm-up whose data are used (`data`).
        candidates (`dict[str, dict]`): by name, the `warmup` and changes of grpo_relay.yaml (`grpo`).
        runs (`dict[str, dict]`): by name, changes of the picked candidate, the evaluation's `methods`, and another `config`
            than grpo_relay.yaml or another `recipe`. With `grpo: null` the student is evaluated as its `warmup` left it.
        configs (`Path`): the folder with the YAMLs of all recipes.
        jobs (`int`, defaults to `1`): stages at the same time; with several, their output goes to `<output_dir>/logs`.
        max_steps (`int`, *optional*): of GRPO, instead of the YAML's.
    """

    output_dir: str
    pair: str
    validation_size: int
    test_size: int
    ends: list[str]
    warmups: dict[str, dict]
    candidates: dict[str, dict]
    runs: dict[str, dict]
    configs: Path
    jobs: int = 1
    max_steps: int | None = None

    @classmethod
    def load(cls, path: Path, jobs: int = 1, max_steps: int | None = None) -> "Reproduction":
        """The plan in a YAML.

        Raises:
            ValueError: something is missing, unknown, or refers to what does not exist.
        """
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        needed = [f.name for f in fields(cls) if f.default is MISSING and f.name != "configs"]
        found = given if isinstance(given, dict) else {}
        if missing := [name for name in needed if name not in found]:
            raise ValueError(
                f"The plan {path} lacks {', '.join(missing)}; see recipes/configs/arithmetic/reproduce.yaml."
            )
        if unknown := sorted(found.keys() - set(needed)):
            raise ValueError(
                f"The plan {path} has an unknown {', '.join(unknown)}; see recipes/configs/arithmetic/reproduce.yaml."
            )
        plan = cls(**given, configs=path.parent, jobs=jobs, max_steps=max_steps)
        for name, setting in plan.warmups.items():
            if setting.get("data", name) not in plan.warmups:
                raise ValueError(
                    f"The warm-up {name} takes its data from {setting['data']}, which the plan does not have."
                )
        for name, setting in [*plan.candidates.items(), *plan.runs.items()]:
            if (warmup := setting.get("warmup")) is not None and warmup not in plan.warmups:
                raise ValueError(f"{name} names the warm-up {warmup}; the plan has {', '.join(plan.warmups)}.")
            if (recipe := setting.get("recipe")) is not None and recipe not in PASSED_ON:
                raise ValueError(
                    f"{name} names the recipe {recipe}; beside grpo_relay there is {', '.join(PASSED_ON)}."
                )
            if setting.get("grpo", {}) is None and not setting.get("warmup"):
                raise ValueError(
                    f"{name} has neither GRPO nor a warm-up, so that nothing would be trained; name a warmup."
                )
            if name in plan.runs and not setting.get("methods"):
                raise ValueError(f"The run {name} has no methods, so nothing would be evaluated.")
        return plan

    def do(self, title: str, result: Path, recipe: str, config: str | None = None, **options: Any) -> bool:
        """Runs a stage with the plan's YAMLs; returns whether it ran."""
        name = title.replace(", ", "-").replace(" ", "-")
        log = Path(self.output_dir, "logs", f"{name}.log") if self.jobs > 1 else None
        return stage(title, result, recipe, self.configs, config, log, **options)

    def pretrain(self):
        """Pretrains student and teacher, if they do not exist."""
        for name in ("student", "teacher"):
            result = Path(self.pair, name, "model.safetensors")
            self.do(f"pretraining of the {name}", result, "pretrain_pair", f"pretrain_{name}")

    def warm_up(self, name: str, seed: int) -> Path:
        """Makes a warm-up; returns the student's folder."""
        folder, setting = Path(self.output_dir, f"seed_{seed}"), self.warmups[name]
        data = setting.get("data", name)
        rows, out = folder / f"warmup_{data}.jsonl", folder / f"sft_{name}"
        build = self.warmups[data].get("build", {})
        self.do(f"warm-up data {data}, seed {seed}", rows, "build_warmup", output=rows, seed=seed, **build)
        options = {"warmup_data": rows, "output_dir": out, "seed": seed, **setting.get("sft", {})}
        self.do(f"warm-up {name}, seed {seed}", out / "model.safetensors", "sft_warmup", **options)
        return out

    def train(self, name: str, setting: dict, seed: int) -> dict[str, Path]:
        """Trains a setting; returns the options for its evaluation."""
        out = Path(self.output_dir, f"seed_{seed}", name)
        if recipe := setting.get("recipe"):
            options = {"output_dir": out, "seed": seed, "dataset_seed": 100 + seed}  # each seed has other problems
            self.do(f"{name}, seed {seed}", out / f"{PASSED_ON[recipe]}.json", recipe, **options)
            return {"student": Path(self.pair, "student"), PASSED_ON[recipe]: out}
        warm = {"student": self.warm_up(setting["warmup"], seed)} if setting.get("warmup") else {}
        if setting.get("grpo", {}) is None:
            return warm
        options = {"output_dir": out, "seed": seed, **setting.get("grpo", {})}
        if self.max_steps is not None:
            options["max_steps"] = self.max_steps
        if warm:
            options["model_name_or_path"] = warm["student"]
        config = setting.get("config", "grpo_relay")
        self.do(f"{name}, seed {seed}", out / "trainer_state.json", "grpo_relay", config, **options)
        return {"student": out}

    def evaluate(self, taken: dict[str, Path], methods: list[str], name: str, split: str = "test") -> bool:
        """Evaluates a trained setting into `evaluation/<name>`; returns whether it ran."""
        size = self.validation_size if split == "validation" else self.test_size
        folder = Path(self.output_dir, "evaluation", name)
        options = {**taken, "methods": methods, "output_dir": folder, "split": split, "limit": size}
        return self.do(f"evaluation of {name}", folder / "results.json", "evaluate", **options)

    def evaluate_ends(self):
        """Evaluates the methods that need no training into `evaluation/ends`."""
        self.evaluate({"student": Path(self.pair, "student")}, self.ends, "ends")

    def choose(self, pool: Executor, seed: int) -> tuple[str, str]:
        """The candidate with the largest accuracy - rho (the paper's simple reward) on the validation split, and a table.

        Raises:
            RuntimeError: all trainings stopped.
        """

        def judge(name: str) -> dict | None:
            try:
                taken = self.train(name, self.candidates[name], seed)
            except RuntimeError as error:  # for example stopped by the guard
                print(error, flush=True)
                return None
            self.evaluate(taken, ["relay"], f"{name}_validation", "validation")
            found = Path(self.output_dir, "evaluation", f"{name}_validation", "results.json")
            (row,) = json.loads(found.read_text(encoding="utf-8"))["results"]
            return row

        scores, lines = {}, ["| candidate | accuracy % | rho % | median n |", "|---|---:|---:|---:|"]
        for name, row in zip(self.candidates, pool.map(judge, self.candidates), strict=True):
            if row is None:
                lines.append(f"| {name} | its training stopped | | |")
                continue
            accuracy, rho = 100 * row["accuracy"], 100 * row["teacher_share"]
            scores[name] = accuracy - rho
            lines.append(f"| {name} | {accuracy:.1f} | {rho:.1f} | {row['requested'] or '-'} |")
        if not scores:
            raise RuntimeError("Every candidate stopped; their errors are above.")
        best = max(scores, key=scores.__getitem__)
        return best, "\n".join([*lines, f"\nPicked on the validation split: {best}.\n"])

    def go(self, name: str, best: str, seed: int) -> bool:
        """Trains and evaluates a run based on the candidate `best`; returns whether there are new results."""
        chosen, changed = self.candidates[best], self.runs[name]
        setting = {**chosen, **changed}
        if changed.get("grpo", {}) is not None:
            setting["grpo"] = {**chosen.get("grpo", {}), **changed.get("grpo", {})}
        own = best if set(changed) == {"methods"} else name  # a run without changes is the candidate itself
        return self.evaluate(self.train(own, setting, seed), setting["methods"], f"{name}_seed_{seed}")
