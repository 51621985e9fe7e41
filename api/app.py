"""The Flask app: made whole by `create_app`, with nothing global, so that a test makes its own."""

import logging
import time
from typing import Final

from flask import Flask, Response, g, request

from api import alerts, fleet, gpus, health, instruments, ledger, metrics, nodes, pages, problems, resources
from api.database import Database
from api.problems import Unavailable
from api.settings import ApiSettings
from api.turns import ARRIVED, REFUSED
from gpu_telemetry.clock import Clock, SystemClock
from gpu_telemetry.settings import DatabaseSettings

_API_PREFIX: Final = "/api/v1"
# What every answer carries unless its view says otherwise.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_log = logging.getLogger("api.requests")


def create_app(
    settings: ApiSettings | None = None,
    *,
    database: DatabaseSettings | None = None,
    clock: Clock | None = None,
) -> Flask:
    """The app; what is not given comes from the environment, and the clock is the machine's.

    The database is first asked when a request needs it: an app can be made, and lives on, without it.

    Raises:
        SettingsError: a setting in the environment is wrong.
    """
    settings = settings or ApiSettings.load()
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit_bytes
    app.url_map.merge_slashes = False  # a node's id may hold any character
    resources.attach(
        app, resources.Resources(Database(settings, database or DatabaseSettings.load()), clock or SystemClock())
    )
    problems.install(app)
    for noun in (fleet, nodes, gpus, metrics, alerts, ledger):
        app.register_blueprint(noun.blueprint, url_prefix=_API_PREFIX)
    for blueprint in (health.blueprint, pages.blueprint):
        app.register_blueprint(blueprint)
    app.before_request(_start)
    app.after_request(_finish)
    return app


def _start() -> None:
    g.started = request.environ.get(ARRIVED, time.perf_counter())
    if (reason := request.environ.get(REFUSED)) is not None:
        raise Unavailable(reason, retry_after=1)


def _finish(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    # Answers are of this moment; only files may be kept.
    response.headers.setdefault("Cache-Control", "no-store")
    seconds = time.perf_counter() - g.started
    route = request.url_rule.rule if request.url_rule is not None else None
    instruments.observe(route, request.method, response.status_code, seconds)
    instruments.observe_connections(resources.resources().database.connections())
    level = logging.INFO if request.path.startswith(_API_PREFIX) else logging.DEBUG
    _log.log(level, "%s %s %d in %.1f ms", request.method, _line(), response.status_code, seconds * 1000)
    return response


def _line() -> str:
    """The request's path and query in one line of printable characters."""
    return request.full_path.rstrip("?").encode("unicode_escape").decode()
