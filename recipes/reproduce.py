"""The paper's comparisons on an embedded pair: trains every setting with several seeds, evaluates it, and prints one table.

    python recipes/reproduce.py --plan recipes/configs/arithmetic/reproduce.yaml --jobs 2

The relay's settings are chosen among the plan's `candidates` on the validation split, with the first seed. Then its `runs` are
made, each with all seeds before the next. results.md and shares.svg are written again after every run. A stage whose result
exists is not run again.
"""

import argparse
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from relay_trl.endings import run
from relay_trl.options import check_file
from relay_trl.reproduction.plan import Reproduction
from relay_trl.reproduction.seeds import write_results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", required=True, help="recipes/configs/<task>/reproduce.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", nargs="+", help="only these runs of the plan")
    parser.add_argument("--max_steps", type=int, help="GRPO steps, over the YAML's")
    parser.add_argument("--jobs", type=int, default=1, help="stages side by side on the cores (default: %(default)s)")
    args = parser.parse_args()
    plan = Reproduction.load(Path(check_file(args.plan, "plan")), args.jobs, args.max_steps)
    if unknown := set(args.runs or ()) - set(plan.runs):
        raise ValueError(f"The plan has no run {', '.join(sorted(unknown))}; it has {', '.join(plan.runs)}.")
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; it must be at least 1.")
    if args.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))

    plan.pretrain()
    pool, writing = ThreadPoolExecutor(args.jobs), threading.Lock()
    try:
        ends = pool.submit(plan.evaluate_ends)
        best, table = plan.choose(pool, args.seeds[0])
        ends.result()

        def write():
            with writing:
                write_results(plan.output_dir, plan.runs, args.seeds, table)

        def go(name: str, seed: int) -> bool:
            if is_new := plan.go(name, best, seed):
                write()
            return is_new

        started = [pool.submit(go, *each) for each in product(args.runs or plan.runs, args.seeds)]
        if not any([each.result() for each in started]):  # no run has written it
            write()
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure, stages that have begun are finished
    print(Path(plan.output_dir, "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
