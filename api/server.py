"""The API under gunicorn: processes of threads that share a port, end in peace, and log as the project does."""

import logging
import os
import shutil
import tempfile
from typing import Any, Final

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from api.settings import ApiSettings
from api.turns import Turns
from gpu_telemetry.settings import DatabaseSettings

_MULTIPROCESS_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
# Requests of one process that may wait for their turn: each holds a thread, which costs little and is made at need.
_IN_LINE: Final = 256
# Threads beyond those of the line, for the probes and for telling a request that the line is full.
_SPARE_THREADS: Final = 8
# The most that gunicorn has a bound for: a cursor, a node's id and a filter fit in, percent signs included.
_REQUEST_LINE_BYTES: Final = 8190

_log = logging.getLogger("api.server")


class _ProjectLogger(Logger):  # type: ignore[misc]
    """Gunicorn's log, handed to this process's own log lines."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401 - gunicorn's configuration has no type
        super().setup(cfg)
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING if logging.root.level > logging.DEBUG else logging.DEBUG)


def serve(settings: ApiSettings, database: DatabaseSettings) -> None:
    """Serve until SIGTERM or SIGINT; the process ends with the server.

    Raises:
        SystemExit: always; its code tells how it went.
    """
    directory = None
    if _MULTIPROCESS_DIRECTORY not in os.environ:
        # Set before anything imports prometheus_client, which looks for it once.
        directory = os.environ[_MULTIPROCESS_DIRECTORY] = tempfile.mkdtemp(prefix="gpu-telemetry-api-")
    owner = os.getpid()
    try:
        _Server(settings, database).run()
    finally:
        if directory is not None and os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)


class _Server(BaseApplication):  # type: ignore[misc]
    """Gunicorn with this project's settings in place of its command line and files."""

    def __init__(self, settings: ApiSettings, database: DatabaseSettings) -> None:
        self._settings = settings
        self._database = database
        super().__init__()

    def load_config(self) -> None:
        for name, value in {
            "bind": self._settings.listen,
            "workers": self._settings.workers,
            "threads": self._settings.threads + _IN_LINE + _SPARE_THREADS,
            "worker_class": "gthread",
            "limit_request_line": _REQUEST_LINE_BYTES,
            "graceful_timeout": self._settings.graceful_timeout_seconds,
            "logger_class": _ProjectLogger,
            "errorlog": None,
            "control_socket_disable": True,
            "proc_name": "gpu-telemetry-api",
            "when_ready": _tell_address,
            "child_exit": _forget_process,
            "worker_exit": _close_database,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """The app of one worker process: made after the fork, so that connections are never shared."""
        from api.app import create_app  # noqa: PLC0415 - imports prometheus_client, which the directory must precede
        from api.resources import resources  # noqa: PLC0415

        app = create_app(self._settings, database=self._database)
        resources(app).database.open()
        app.wsgi_app = Turns(  # type: ignore[method-assign]  # Flask's own way to put something before an app
            app.wsgi_app,
            at_work=self._settings.threads,
            in_line=_IN_LINE,
            patience_seconds=self._settings.pool_timeout_seconds,
        )
        return app


def _tell_address(server: Arbiter) -> None:
    for listener in server.LISTENERS:
        host, port = listener.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _log.info("API started, serving on http://%s", address)


def _forget_process(server: Arbiter, worker: Worker) -> None:  # noqa: ARG001 - gunicorn's signature
    from prometheus_client import multiprocess  # noqa: PLC0415 - as in load

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def _close_database(server: Arbiter, worker: Worker) -> None:  # noqa: ARG001 - gunicorn's signature
    if isinstance(app := getattr(worker, "wsgi", None), Flask):
        from api.resources import resources  # noqa: PLC0415 - as in load

        resources(app).database.close()
