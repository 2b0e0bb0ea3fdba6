"""`relay-trl serve`: loads a pair and serves it until it gets a signal to stop.

Owns the process: options, the socket, the signals. The routes are in `app.py`.
"""

import logging
import socket

from ..cli.endings import end_in_order
from ..cli.parser import RecipeParser
from ..engines.checks import check_model
from .config import ServingConfig

KEEP_ALIVE_S = 75
"""Idle connections stay open for longer than clients keep them (httpx 5 s, which is uvicorn's default too). Otherwise the server
could close a connection just as a request arrives on it."""


def serve(args: list[str] | None = None):
    """Serves a pair until it gets a signal to stop.

    Args:
        args (`list[str]`, *optional*): options of [`ServingConfig`] and `--config file.yaml`; `None`: the command line's.
    """
    (config,) = RecipeParser(ServingConfig).parse(args)  # type: ignore[arg-type]
    if "://" not in config.student:
        check_model(config.student, "student")
    run_server(config)


def run_server(config: ServingConfig):
    """Serves the pair of a config.

    Raises:
        ImportError: the extra `serve` is not installed.
        OSError: the port is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError("The server needs uvicorn; install `relay_trl[serve]`.") from error
    from .app import RelayServer
    from .chat_page import load_prices

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "httpx2", "openai"):  # they would log every request to a teacher
        logging.getLogger(name).setLevel(logging.WARNING)
    keys, prices = config.keys(), load_prices(config.costs)
    with _listen(config.host, config.port) as listener:  # first, so that a used port is noticed at once
        pair = config.load()
        server = RelayServer(pair, config.model_name, keys, config, prices, config.cors_origins or [])
        port = listener.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        teacher = "no teacher" if pair.teacher is None else f"teacher {pair.teacher.name}"
        print(f"{config.model_name} ({teacher}) is served at http://{host}:{port}/v1, with a page at /", flush=True)
        options = uvicorn.Config(
            server.app(),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(config.shutdown_s)),
        )
        end_in_order()
        uvicorn.Server(options).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"Cannot listen at {host}:{port} ({error.strerror or error}); choose another port.") from error
    listener.set_inheritable(True)
    return listener
