"""How fast the rollout viewer is with many rollouts in a headless Chromium: opening, filtering, scrolling.

    python benchmarks/viewer.py --rollouts 10000

The run is made up (`tests/helpers/made_up_run.py`). The time of a filter is that from the change of its field to the next frame; the
time of a scroll that from the wheel to the next frame. Prints medians with the smallest and the largest.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tables import add_output, machine, save, table

from relay_trl.cli.endings import run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FILTERS = ("hard", "called", "wrong", "malformed", "failed")
TO_THE_NEXT_FRAME = """act => new Promise(done => { const start = performance.now(); eval(act);
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - start), 0)); })"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=10_000, help="of the run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each filter (default: %(default)s)")
    add_output(parser, "viewer")
    args = parser.parse_args()

    from helpers.made_up_run import write_run
    from helpers.served import CHROMIUM, served
    from playwright.sync_api import sync_playwright

    from relay_trl.viewer.follow import FollowedRun
    from relay_trl.viewer.server import watch_app

    found: dict[str, list[float]] = {"open": []}
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), rollouts=args.rollouts, groups_per_step=50)
        with served(watch_app(FollowedRun(Path(folder)))) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for _ in range(args.repeats):
                page = browser.new_page()
                started = time.perf_counter()
                page.goto(url)
                page.wait_for_function(
                    "n => document.querySelector('.filters output').value.replaceAll(',', '').startsWith(n)",
                    arg=f"{args.rollouts} of {args.rollouts} ",
                )
                found["open"].append(1000 * (time.perf_counter() - started))
            for name in FILTERS:
                click = f"document.querySelector('[name={name}]').click()"
                times = [page.evaluate(TO_THE_NEXT_FRAME, click) for _ in range(2 * args.repeats)]
                found[f"filter: {name}"] = times
            find = "const f = document.querySelector('[name=text]'); f.value = f.value ? '' : '7'; "
            find += "f.dispatchEvent(new Event('input', {bubbles: true}))"
            found["filter: text"] = [page.evaluate(TO_THE_NEXT_FRAME, find) for _ in range(2 * args.repeats)]
            scroll = "scrollBy(0, 3000)"
            found["scroll by 3,000 px"] = [page.evaluate(TO_THE_NEXT_FRAME, scroll) for _ in range(20 * args.repeats)]
            browser.close()
    columns = {"what": lambda item: item[0], "ms": lambda item: item[1]}
    note = f"{args.rollouts:,} rollouts. {machine()}"
    save(args.output_dir, "viewer", {"ms": found}, f"{table(columns, list(found.items()), 0)}\n\n{note}")


if __name__ == "__main__":
    run(main)
