"""The command `relay-trl`, also `python -m relay_trl`. The module of a subcommand is imported only when it is used."""

import importlib
import sys

from .cli import run

COMMANDS = {
    "serve": ("serving.serve:serve", "serve a student and its teacher to OpenAI clients"),
    "watch": ("viewer.watch:watch", "show the rollouts and curves of a training in a browser"),
}
"""Subcommand, the function that gets the rest of the command line, and its help text."""


def main():
    """Runs the subcommand that the first argument names."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print("usage: relay-trl COMMAND [options]\n")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:10} {what}")
        print("\nrelay-trl COMMAND --help lists the options of a command.")
        return
    run(lambda: _function(word)(rest))


def _function(word: str):
    if word not in COMMANDS:
        raise ValueError(f"Unknown command {word!r}; it must be one of {', '.join(COMMANDS)}.")
    module, _, name = COMMANDS[word][0].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


if __name__ == "__main__":
    main()
