"""`gpu-telemetry status`: what the stack that runs on a data directory is doing."""

import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console

from gpu_telemetry.local.directory import DEFAULT, DataDirectory
from gpu_telemetry.local.observe import Observer
from gpu_telemetry.local.table import render


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=True,
    help="The stack's data directory.",
)
def command(*, as_json: bool, data: Path) -> None:
    """Show nodes, GPUs, rates, lag, open alerts and parts of the running stack.

    Exit code 1: none runs, or a service of it does not answer.
    """
    directory = DataDirectory(data)
    state = directory.read_state()
    if state is None:
        starting = directory.held_by() is not None
        said = "is only just starting" if starting else "does not run: `gpu-telemetry up` starts one"
        print(f"gpu-telemetry status: the stack on {directory.path} {said}", file=sys.stderr)
        sys.exit(1)
    observer = Observer(state.urls)
    try:
        snapshot = observer.look()
    finally:
        observer.close()
    if as_json:
        whole = msgspec.to_builtins(state) | msgspec.to_builtins(snapshot)
        print(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode())
    else:
        console = Console(highlight=False)
        console.print(render(state, snapshot))
        console.print(f"database {state.database}   kafka {state.kafka}")
        for part in state.parts:
            console.print(f"log of {part.name}: {part.log}", soft_wrap=True)
    sys.exit(1 if snapshot.unanswered else 0)
