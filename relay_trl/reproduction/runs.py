"""The runs of a pair: its own run and its comparisons, each with every seed, and the candidates for its settings.

Owns which runs there are and their order.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .expand import Stage, expand
from .pair import MAIN, PAIR, Pair
from .sections import SECTIONS, check_known

if TYPE_CHECKING:
    from .running import Runner

_TRAINED = ("sft", "grpo", "citer")


class Runs:
    """The runs of one call of `relay-trl train`.

    Args:
        pair ([`Pair`]).
        seeds (`Sequence[int]`, *optional*): every run is trained with each of them; `None`: those in the file, if it has any.
        names (`Sequence[str]`, *optional*): which runs: `relay` (the pair's own) and baselines, or `all`; `None`: the pair's
            own and those in the file.
        stages (`Sequence[str]`, *optional*): the sections that run; `None`: all.

    Raises:
        ValueError: a name is unknown or taken, an option would change nothing, or only some stages are wanted where a candidate is to be chosen.
    """

    def __init__(
        self,
        pair: Pair,
        seeds: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        stages: Sequence[str] | None = None,
    ):
        self.pair, self.wanted = pair, stages
        _check_chains(pair)
        _check_overrides(pair)
        if stages is not None:
            check_known(
                stages, [name for name in SECTIONS if name in pair.sections], f"{pair.path}, asked for by --stages,"
            )
        asked = [*pair.compare, MAIN] if names is None else [*pair.baselines, MAIN] if "all" in names else list(names)
        where = f"{pair.path}: compare" if names is None else f"{pair.path}, asked for by --runs,"
        check_known(asked, [MAIN, *pair.baselines], where)
        self.seeds: list[int | None] = list(dict.fromkeys(seeds or pair.seeds)) or [None]
        self.chosen: str | None = next(iter(pair.candidates), None)  # the first, until `go` has chosen one
        asked.sort(key=lambda name: (self.is_trained(name), name == MAIN))
        self.names = list(dict.fromkeys(asked))
        others = [{name: self._layers(name, each) for name in self.names} for each in pair.candidates]
        self._is_choosing = any(layers != others[0] for layers in others[1:])
        if self._is_choosing and stages is not None:
            raise ValueError(
                f"{pair.path} chooses among {', '.join(pair.candidates)} first, which takes all of their stages; leave --stages "
                "out, or name runs that do not depend on the choice with --runs."
            )

    def is_trained(self, name: str) -> bool:
        """Whether something is trained in a run, so that it depends on the seed."""
        return any(stage.section in _TRAINED for stage in expand(self.pair, self._layers(name, self.chosen)))

    def is_seeded(self, name: str) -> bool:
        """Whether there is a run for each seed."""
        return self.seeds != [None] and self.is_trained(name)

    def _layers(self, name: str, chosen: str | None) -> list[tuple[str, Mapping[str, Any]]]:
        """What a run changes of the file's sections, lowest first."""
        layers: list[tuple[str, Mapping[str, Any]]] = []
        while name != PAIR:
            is_candidate = name in self.pair.candidates
            change = {} if name == MAIN else self.pair.candidates[name] if is_candidate else self.pair.baselines[name]
            if name != MAIN:
                layers.insert(0, (name, change))
            name = change.get("over", PAIR if is_candidate or chosen is None else chosen)
        return layers

    def stages(self, name: str, seed: int | None) -> list[Stage]:
        """The stages of a run."""
        return expand(self.pair, self._layers(name, self.chosen), seed if self.is_trained(name) else None, name)

    def candidate(self, name: str) -> list[Stage]:
        """The stages that evaluate a candidate, with the first seed."""
        *below, (_, change) = self._layers(name, None)
        asked = {**change.get("evaluate", {}), "methods": ["relay"], **self.pair.choose_on}
        return expand(self.pair, [*below, (name, {**change, "evaluate": asked})], self.seeds[0], f"{name}_validation")

    def all_stages(self) -> list[Stage]:
        """Every stage once, in order."""
        found: dict[str, Stage] = {}
        for name in self.pair.candidates if self._is_choosing else ():
            found |= {stage.name: stage for stage in self.candidate(name)}
        for name in self.names:
            for seed in self.seeds:
                for stage in self.stages(name, seed):
                    found.setdefault(stage.name, stage)
        return sorted(found.values(), key=lambda stage: list(SECTIONS).index(stage.section))

    def go(self, runner: "Runner", note: Callable[[str], None]):
        """Runs everything: candidates first, then each run over all seeds.

        Args:
            runner ([`Runner`]).
            note (`Callable`): called after each evaluation, with the table of candidates if there is one.
        """
        words = self._choose(runner) if self._is_choosing else ""
        if self.seeds == [None]:  # section by section, so that the teacher's server is rarely restarted
            runner.run(self._wanted(self.all_stages()))
            note(words)
            return
        waiting = []
        for name in self.names:
            for seed in self.seeds if self.is_seeded(name) else [None]:
                waiting.append(runner.submit(self._wanted(self.stages(name, seed))))
        for futures in waiting:
            for future in futures:
                future.result()
            note(words)

    def _wanted(self, stages: Sequence[Stage]) -> list[Stage]:
        return [stage for stage in stages if self.wanted is None or stage.section in self.wanted]

    def _choose(self, runner: "Runner") -> str:
        """Chooses the candidate with the largest accuracy - rho (the paper's simple reward) on the validation rows; the table.

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
        self.chosen = max(scores, key=scores.__getitem__)
        return "\n".join([*lines, f"\nPicked on the validation split: {self.chosen}.\n"])

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
        run = self._wanted(self.stages(self.names[-1], self.seeds[0]))
        last = [stage for stage in run if stage.section in ("sft", "second_sft", "grpo")]
        if not last:
            return f"Next: relay-trl train {self.pair.path}"
        student = last[-1].settings["output_dir"]
        return (
            f"Next: relay-trl serve --student {student} --teacher {self.pair.teacher}   (or relay-trl watch {student})"
        )


def _check_overrides(pair: Pair):
    """Refuses an option of the command line that is of a stage in no run."""
    made = set(pair.sections).union(*pair.baselines.values(), *pair.candidates.values())
    for section, options in pair.overrides.items():
        if section not in made:
            raise ValueError(
                f"{section}.{next(iter(options))} would change nothing: {pair.path} has no stage {section}. Its stages are "
                f"{', '.join(name for name in SECTIONS if name in made)}; add a section {section}, or leave the option out."
            )


def _check_chains(pair: Pair):
    """Refuses an `over` that names nothing, or that leads back to itself, and names that have a meaning of their own."""
    for kind, others in (("candidates", pair.candidates), ("baselines", {**pair.candidates, **pair.baselines})):
        for name, change in getattr(pair, kind).items():
            if name in (MAIN, PAIR) or (kind == "baselines" and name in pair.candidates):
                raise ValueError(f"{pair.path}: {kind}.{name} has a name that is taken; give it another one.")
            seen = [name]
            while (below := change.get("over", PAIR)) != PAIR:
                check_known([below], (PAIR, *others), f"{pair.path}: over of {kind}.{seen[-1]}")
                if below in seen:
                    raise ValueError(f"{pair.path}: {kind}.{name} is over itself, by way of {seen[-1]}.")
                seen.append(below)
                change = others[below]
