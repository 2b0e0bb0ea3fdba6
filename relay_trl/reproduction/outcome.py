"""The results of a pair's runs: one report over all of them, or a table over their seeds.

Owns which evaluations are read, and their names. `evaluation/report/` makes tables and pages, `seeds.py` means over seeds.
"""

from pathlib import Path

from .pair import MAIN, Pair
from .runs import Runs


class Outcome:
    """Collects and shows results.

    Args:
        pair ([`Pair`]).
        runs ([`Runs`]).
    """

    def __init__(self, pair: Pair, runs: Runs):
        self.pair, self._runs = pair, runs
        self.seeds = [seed for seed in runs.seeds if seed is not None]

    def note(self, notes: str):
        """Call it after an evaluation: with seeds, results.md and shares.svg are written again, `notes` below the table."""
        if self.seeds:
            self._write_table(notes)

    def _found(self) -> dict[str, tuple[Path, str | None]]:
        """For each finished run without seeds, the folder of its evaluation and its label."""
        found = {}
        for name in self._runs.names:
            if not self._runs.is_seeded(name):
                for stage in self._runs.stages(name, None):
                    if stage.section == "evaluate" and stage.written.exists():
                        found[name] = (stage.written.parent, stage.label)
        return found

    def _write_table(self, notes: str):
        from .seeds import write_results

        ends = [folder for folder, _ in self._found().values()]
        names = [name for name in self._runs.names if self._runs.is_seeded(name)]
        if any((self.pair.output_dir / "evaluation").glob("*_seed_*/results.json")):
            write_results(self.pair.output_dir, [MAIN, *(n for n in names if n != MAIN)], self.seeds, notes, ends)

    def show(self):
        """Prints the table, and says where everything is."""
        if self.seeds:
            table = self.pair.output_dir / "results.md"
            if table.exists():
                print(f"\n{table.read_text(encoding='utf-8')}\nThe table is in {table}.")
            return
        found = self._found()
        if not found:
            return
        from ..evaluation.answer_files import read_run
        from ..evaluation.report.training_plots import read_log
        from ..evaluation.report.write import print_results, write_report

        runs, logs = [], {}
        for name, (folder, label) in found.items():
            run = read_run(folder, name)
            methods = {answer.method for answer in run.answers}
            if label and len(methods) == 1:
                run.labels = {methods.pop(): label}
            runs.append(run)
            trained = [stage for stage in self._runs.stages(name, None) if stage.section == "grpo"]
            if trained and trained[0].written.exists():
                logs[label or name] = read_log(trained[0].written.parent)
        report = self.pair.output_dir / "report"
        title = f"{self.pair.student} with {self.pair.teacher}"
        print_results(write_report(runs, report, logs, title))
        print(f"\nTables, plots and pages of rollouts are in {report}: open {report / 'report.html'}.")
