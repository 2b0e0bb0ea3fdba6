"""The command `relay-trl`, also `python -m relay_trl`. The module of a subcommand is imported only when it is used."""

import importlib
import runpy
import sys
from pathlib import Path

COMMANDS = {
    "train": ("reproduction.command:train", "train and evaluate a pair file's student and teacher, stage by stage"),
    "init": ("reproduction.command:init", "write the pair file of a new student, teacher and data set"),
    "check": ("reproduction.command:check", "say what would stop a pair, before anything is loaded"),
    "evaluate": ("recipes/evaluate.py", "ask benchmarks of a student and its teacher by several methods"),
    "report": ("recipes/report.py", "put finished evaluations side by side"),
    "plan": ("recipes/plan.py", "say what a training or a service will need"),
    "push": ("recipes/push.py", "push a trained student, or data, to the Hub"),
    "serve": ("serving.serve:serve", "serve a student and its teacher to OpenAI clients"),
    "watch": ("viewer.watch:watch", "show the rollouts and curves of a training in a browser"),
}
"""Subcommand, the function that gets the rest of the command line (or the recipe that does), and its help text."""


def main():
    """Runs the subcommand that the first argument names."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print("usage: relay-trl COMMAND [options]\n")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:10} {what}")
        print("\nrelay-trl COMMAND --help lists the options of a command.")
        return
    from .cli.endings import run  # a tenth of a second, which the help need not wait for

    run(lambda: _function(word)(rest))


def _function(word: str):
    if word not in COMMANDS:
        raise ValueError(f"Unknown command {word!r}; it must be one of {', '.join(COMMANDS)}.")
    module, _, name = COMMANDS[word][0].partition(":")
    if module.startswith("recipes/"):
        return lambda rest: _run_recipe(module, rest)
    return getattr(importlib.import_module(f".{module}", __package__), name)


def _run_recipe(name: str, rest: list[str]):
    path = Path(__file__).parents[1] / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is not there: relay_trl was installed without its recipes; clone the repository and `pip install -e .`."
        )
    sys.argv = [str(path), *rest]
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
