"""The commands on pair files: `relay-trl init` writes one, `check` says what would stop it, `train` runs its stages, comparisons
and seeds and prints the table at the end.

Owns the command lines. `init.py` chooses what a file says, `check.py` has the checks, `expand.py` makes the stages, `runs.py` the
order, `running.py` runs them, `outcome.py` shows the results.
"""

import argparse
import os
import re
import signal
import sys
import time

from ..options import check_file

_CHANGE = re.compile(r"[A-Za-z_][\w.]*=")


def init(arguments: list[str]):
    """`relay-trl init`: writes the pair file of a new student, teacher and data set."""
    parser = argparse.ArgumentParser(
        prog="relay-trl init", description="Writes the pair file of a new student, teacher and data set."
    )
    parser.add_argument("--student", required=True, help="folder or Hub id")
    parser.add_argument("--teacher", required=True, help="folder, Hub id, or URL of a server")
    kinds = "a registered set, an embedded task, a .jsonl, .csv or .parquet file, or a Hub id"
    parser.add_argument("--dataset", required=True, help=kinds)
    parser.add_argument("--output", help="the file to write (default: recipes/pairs/STUDENT_with_TEACHER.yaml)")
    args = parser.parse_args(arguments)

    from .init import write_pair

    write_pair(args.student, args.teacher, args.dataset, args.output)


def _pair_parser(command: str, more: str, description: str) -> argparse.ArgumentParser:
    usage = f"relay-trl {command} PAIR [--hardware 1gpu] [--student X] [--teacher URL]{more} [section.option=value ...]"
    parser = argparse.ArgumentParser(prog=f"relay-trl {command}", usage=usage, description=description)
    parser.add_argument("pair", metavar="PAIR", help="recipes/pairs/<name>.yaml")
    parser.add_argument(
        "--hardware", help="profile of the pair file (default: the largest that this machine's GPUs are enough for)"
    )
    parser.add_argument("--student", help="folder or Hub id, in place of the file's")
    parser.add_argument("--teacher", help="folder, Hub id or URL, in place of the file's")
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="section.option=value",
        help="over the file, such as grpo.max_steps=100 or output_dir=runs/mine",
    )
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The command line; `section.option=value` may stand anywhere in it."""
    changes = [word for word in arguments if _CHANGE.match(word)]
    args = parser.parse_args([word for word in arguments if word not in changes])
    if args.changes:
        raise ValueError(
            f"{args.changes[0]!r} is no change of a setting; write section.option=value, such as grpo.max_steps=100."
        )
    args.changes = changes
    check_file(args.pair, "PAIR")
    return args


def check(arguments: list[str]):
    """`relay-trl check PAIR`: prints what would stop the pair; exit status 1 if there is something."""
    args = _parsed(_pair_parser("check", "", "Says what would stop a pair, before anything is loaded."), arguments)

    from .check import problems
    from .pair import load_pair
    from .runs import Runs

    pair = load_pair(args.pair, args.hardware, args.changes, args.student, args.teacher)
    found = problems(pair, Runs(pair).all_stages(), None, is_thorough=True)
    for number, problem in enumerate(found, start=1):
        print(f"{number}. {problem}")
    if found:
        sys.exit(1)
    print(f"Nothing stands in the way of {pair.path} on {pair.profile.name}: relay-trl train {pair.path}")


def train(arguments: list[str]):
    """`relay-trl train PAIR`.

    Raises:
        ValueError, OSError: something is wrong that is found before anything runs.
        RuntimeError: a stage failed.
    """
    parser = _pair_parser(
        "train",
        " [--stages sft grpo] [--runs relay] [--seeds 1 2 3]",
        "Trains and evaluates a pair: runs the stages of a pair file in order, each by its own recipe, and goes on where an earlier "
        "run was stopped. Every stage's plain YAML is written to OUTPUT/configs and opens with its launch line.",
    )
    parser.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="only these sections of the file, such as sft grpo"
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="SEED",
        help="train with each of these, and end with a table over them (default: the file's, if it has any)",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="RUN",
        help="only these: relay (the pair's own run), baselines of the file, or all (default: relay and the file's `compare`)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="stages side by side on the cores (default: %(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print stages, batches, memory and the teacher's tokens, and start nothing",
    )
    args = _parsed(parser, arguments)
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; it must be at least 1.")

    from ..training.trackers import PAIR_FILE
    from .check import check_hardware, refuse
    from .dry_run import print_plan
    from .expand import server_words
    from .outcome import Outcome
    from .pair import load_pair
    from .running import Runner, check_stages
    from .runs import Runs
    from .teacher_server import TeacherServer

    os.environ[PAIR_FILE] = os.path.abspath(args.pair)
    pair = load_pair(args.pair, args.hardware, args.changes, args.student, args.teacher)
    runs = Runs(pair, args.seeds, args.runs, args.stages)
    print(f"{runs.about()}\n")
    if args.dry_run:
        print_plan(pair, runs.all_stages(), args.stages)
        return
    check_hardware(pair)
    refuse(pair, runs.all_stages(), args.stages)
    check_stages(runs.all_stages(), args.stages)
    if args.jobs > 1:
        if any(stage.serve is not None for stage in runs.all_stages()):
            raise ValueError(
                f"--jobs is {args.jobs}, but the profile {pair.profile.name} serves a teacher, one stage at a time; leave --jobs out."
            )
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))

    started = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the children and the teacher's server too
    server = TeacherServer(lambda options: server_words(pair, options), pair.profile.port)
    outcome = Outcome(pair, runs)
    with Runner(server, args.jobs) as runner:
        runs.go(runner, outcome.note)
    outcome.show()
    minutes = (time.perf_counter() - started) / 60
    print(
        f"\n{minutes:.1f} minutes. The stages' YAML files are in {pair.output_dir / 'configs'}, what they printed in {pair.output_dir / 'logs'}."
    )
    print(runs.next_step())
