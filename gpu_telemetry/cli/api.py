"""`gpu-telemetry api`: run the REST API and the web page."""

import click

from gpu_telemetry import logs
from gpu_telemetry.settings import DatabaseSettings, LogSettings


@click.command()
@click.option("--listen", help="Where to serve, as HOST:PORT; API_LISTEN if not given.")
@click.option("--workers", type=int, help="Processes that answer requests; API_WORKERS if not given.")
@click.option("--threads", type=int, help="Requests that one process answers at once; API_THREADS if not given.")
def command(listen: str | None, workers: int | None, threads: int | None) -> None:
    """Run the REST API and the web page; every setting is an environment variable, a flag wins over it."""
    from api.server import serve  # noqa: PLC0415 - the command line imports a service only when it runs it
    from api.settings import ApiSettings  # noqa: PLC0415

    settings = ApiSettings.load(listen=listen, workers=workers, threads=threads)
    database = DatabaseSettings.load()
    logs.configure(LogSettings.load())
    serve(settings, database)
