"""The runs of a pair: its own run and its comparisons, each with every seed, and the candidates for its settings.

Owns which runs there are and their order.
"""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .expand import MAIN, Stage, expand
from .pair import Pair
from .sections import SECTIONS, check_known

if TYPE_CHECKING:
    from .running import Runner

_TRAINED = ("sft", "grpo", "citer")


class Runs:
    """The runs of one call of `relay-trl train`.

    Args:
        pair ([`Pair`]).
        seeds (`Sequence[int]`, *optional*): every run is trained with each of them; `None`: once, with the file's seeds.
        compare (`Sequence[str]`, *optional*): baselines; `None`: those in the file.
        stages (`Sequence[str]`, *optional*): the sections that run; `None`: all.

    Raises:
        ValueError: a name is unknown.
    """

    def __init__(
        self, pair: Pair, seeds: Sequence[int] | None, compare: Sequence[str] | None, stages: Sequence[str] | None
    ):
        self.pair, self.wanted = pair, stages
        if stages is not None:
            check_known(
                stages, [name for name in SECTIONS if name in pair.sections], f"{pair.path}, asked for by --stages,"
            )
        names = list(pair.compare if compare is None else compare)
        if compare is not None and list(compare) in (["all"], ["none"]):
            names = list(pair.baselines) if compare[0] == "all" else []
        check_known(names, pair.baselines, f"{pair.path}: baselines")
        self.seeds: list[int | None] = list(dict.fromkeys(seeds)) if seeds else [None]
        self.names = [
            *(name for name in names if not self._is_trained(name)),
            *(name for name in names if self._is_trained(name)),
            MAIN,
        ]

    def _is_trained(self, name: str) -> bool:
        change = self.pair.baselines[name]
        return (
            any(change.get(section, self.pair.sections.get(section)) is not None for section in ("sft", "grpo"))
            or "citer" in change
        )

    def is_seeded(self, name: str) -> bool:
        """Whether a run depends on the seed, because it is trained."""
        return self.seeds != [None] and (name == MAIN or self._is_trained(name))

    def stages(self, name: str, seed: int | None, chosen: str | None = None) -> list[Stage]:
        """The stages of a run, based on the candidate `chosen`."""
        layers: list[tuple[str, Any]] = [(chosen, self.pair.candidates[chosen])] if chosen else []
        layers += [(name, self.pair.baselines[name])] if name != MAIN else []
        return expand(self.pair, layers, seed if name == MAIN or self._is_trained(name) else None, name)

    def candidate(self, name: str) -> list[Stage]:
        """The stages that evaluate a candidate, with the first seed."""
        change = self.pair.candidates[name]
        asked = {**change.get("evaluate", {}), "methods": ["relay"], **self.pair.choose_on}
        return expand(self.pair, [(name, {**change, "evaluate": asked})], self.seeds[0], f"{name}_validation")

    def all_stages(self, chosen: str | None = None) -> list[Stage]:
        """Every stage once, in order. Until a candidate is chosen, the runs are based on the first one."""
        found: dict[str, Stage] = {}
        for name in self.pair.candidates:
            found |= {stage.name: stage for stage in self.candidate(name)}
        chosen = chosen or next(iter(self.pair.candidates), None)
        for name in self.names:
            for seed in self.seeds:
                for stage in self.stages(name, seed, chosen):
                    found.setdefault(stage.name, stage)
        return sorted(found.values(), key=lambda stage: list(SECTIONS).index(stage.section))

    def go(self, runner: "Runner", note: Callable[[str | None, str], None]):
        """Runs everything: candidates first, then each run over all seeds.

        Args:
            runner ([`Runner`]).
            note (`Callable`): called after each evaluation with the chosen candidate, if there is one, and notes on the choice.
        """
        chosen, words = self._choose(runner) if self.pair.candidates and not self.wanted else (None, "")
        waiting = []
        plan = self.all_stages(chosen) if self.seeds == [None] else None
        if plan is not None:  # section by section, so that the teacher's server is rarely restarted
            runner.run(self._wanted(plan))
            note(chosen, words)
            return
        for name in self.names:
            for seed in self.seeds if self.is_seeded(name) else [None]:
                waiting.append(runner.submit(self._wanted(self.stages(name, seed, chosen))))
        for futures in waiting:
            for future in futures:
                future.result()
            note(chosen, words)

    def _wanted(self, stages: Sequence[Stage]) -> list[Stage]:
        return [stage for stage in stages if self.wanted is None or stage.section in self.wanted]

    def _choose(self, runner: "Runner") -> tuple[str, str]:
        """The candidate with the largest accuracy - rho (the paper's simple reward) on the validation rows, and a table.

        Raises:
            RuntimeError: all trainings stopped.
        """
        started = {name: runner.submit(self.candidate(name)) for name in self.pair.candidates}
        scores, lines = {}, ["| candidate | accuracy % | rho % | median n |", "|---|---:|---:|---:|"]
        for name, futures in started.items():
            try:
                for future in futures:
                    future.result()
            except RuntimeError as error:  # for example stopped by the guard
                print(error, flush=True)
                lines.append(f"| {name} | its training stopped | | |")
                continue
            (row,) = json.loads(self.candidate(name)[-1].written.read_text(encoding="utf-8"))["results"]
            accuracy, rho = 100 * row["accuracy"], 100 * row["teacher_share"]
            scores[name] = accuracy - rho
            lines.append(f"| {name} | {accuracy:.1f} | {rho:.1f} | {row['requested'] or '-'} |")
        if not scores:
            raise RuntimeError("Every candidate stopped; their errors are above.")
        best = max(scores, key=scores.__getitem__)
        return best, "\n".join([*lines, f"\nPicked on the validation split: {best}.\n"])

    def about(self) -> str:
        """A sentence about what will run."""
        pair, stages = self.pair, self._wanted(self.all_stages())
        data = pair.task.get("dataset", "no dataset of its own")
        seeds = f", seeds {', '.join(map(str, self.seeds))}" if self.seeds != [None] else ""
        return (
            f"{pair.path}: {pair.about or 'a pair'}\n"
            f"  student {pair.student}, teacher {pair.teacher}, data {data}, on {pair.profile.name}\n"
            f"  {len(stages)} stages into {pair.output_dir}{seeds}: {', '.join(stage.name for stage in stages)}"
        )

    def next_step(self) -> str:
        """The next command to type."""
        last = [stage for stage in self._wanted(self.stages(MAIN, self.seeds[0])) if stage.section in ("sft", "grpo")]
        if not last:
            return f"Next: relay-trl train {self.pair.path}"
        student = last[-1].settings["output_dir"]
        return (
            f"Next: relay-trl serve --student {student} --teacher {self.pair.teacher}   (or relay-trl watch {student})"
        )
