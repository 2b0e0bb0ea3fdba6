"""The viewer's server: the page, and new rollouts of a run.

Owns the routes. By default only this machine has access, and only under its own name, so that a page of another site that knows
the port gets nothing.
"""

import gzip
import json

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .follow import FollowedRun
from .watch_page import render_watch_page

LOCAL = ["127.0.0.1", "localhost", "[::1]"]


def watch_app(run: FollowedRun, hosts: list[str] = LOCAL) -> Starlette:  # noqa: B006
    """The ASGI application.

    Args:
        run ([`FollowedRun`]).
        hosts (`list[str]`): accepted host names; `["*"]` accepts all.
    """
    page = render_watch_page(run.name)

    def show(request: Request) -> Response:
        return HTMLResponse(page)

    def updates(request: Request) -> Response:
        try:
            epoch, after, figures = (int(request.query_params.get(name, -1)) for name in ("epoch", "after", "figures"))
        except ValueError:
            return JSONResponse({"error": "epoch, after and figures are whole numbers"}, 400)
        try:
            return _answer(request, run.updates(epoch, after, max(0, figures)))
        except (OSError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 503)

    def older(request: Request) -> Response:
        try:
            return _answer(request, run.older(int(request.query_params.get("before", -1))))
        except ValueError:
            return JSONResponse({"error": "before is a whole number"}, 400)

    routes = [Route("/", show), Route("/api/updates", updates), Route("/api/older", older)]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


def _answer(request: Request, data: object) -> Response:
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    headers = {"Cache-Control": "no-store"}
    if len(body) > 10_000 and "gzip" in request.headers.get("Accept-Encoding", ""):
        body, headers = gzip.compress(body, 1), {**headers, "Content-Encoding": "gzip"}
    return Response(body, headers=headers, media_type="application/json")
