"""`relay-trl watch RUN`: shows a training's rollouts and curves in a browser, or writes them into one file.

Owns the command line. `watch_page.py` makes the page, `follow.py` reads the run.
"""

import argparse
import ipaddress
import socket
from pathlib import Path

from ..cli.endings import end_in_order
from .follow import FollowedRun
from .watch_page import render_watch_page


def parse(args: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="relay-trl watch", description="Shows the rollouts and curves of a GRPO run, while it trains or after."
    )
    parser.add_argument("run", help="the training's output_dir")
    parser.add_argument("--export", metavar="FILE", help="write one HTML file that opens from disk, and serve nothing")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8090, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--max_rollouts", type=int, default=10_000, help="the newest to show (default: %(default)s)")
    return parser.parse_args(args)


def watch(args: list[str] | None = None):
    """Serves the viewer until it gets a signal to stop, or writes its page.

    Args:
        args (`list[str]`, *optional*): `None`: the command line's.

    Raises:
        FileNotFoundError: the run has no rollouts.
        ValueError: an option is out of its range.
        ImportError: the extra `serve` is not installed.
        OSError: the port is taken.
    """
    options = parse(args)
    if options.max_rollouts < 1:
        raise ValueError(f"max_rollouts is {options.max_rollouts}; it must be at least 1.")
    run = FollowedRun(options.run, options.max_rollouts)
    if options.export:
        data = run.everything()
        path = Path(options.export)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render_watch_page(run.name, data), encoding="utf-8")
        rollouts = sum(len(group["rollouts"]) for group in data["groups"])
        print(f"{rollouts} rollouts in {len(data['groups'])} groups are in {path}; open it in a browser.")
        return
    _serve(run, options.host, options.port)


def _serve(run: FollowedRun, host: str, port: int):
    try:
        import uvicorn

        from .server import LOCAL, watch_app
    except ImportError as error:
        raise ImportError(
            "The viewer needs uvicorn and starlette; install `relay_trl[serve]`, or use --export."
        ) from error
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(f"Cannot listen at {host}:{port} ({error}); choose another --port.") from error
    with listener:
        is_local = host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
        shown = f"[{host}]" if ":" in host else host
        print(f"{run.name} is shown at http://{shown}:{listener.getsockname()[1]}", flush=True)
        if not is_local:
            print("Whoever reaches this address can read the run's prompts and answers.", flush=True)
        config = uvicorn.Config(
            watch_app(run, LOCAL if is_local else ["*"]), access_log=False, log_level="warning", server_header=False
        )
        end_in_order()
        uvicorn.Server(config).run(sockets=[listener])


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
