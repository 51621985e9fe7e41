"""`gpu-telemetry emulator`: run the emulated fleet."""

import click

from emulator.service import CannotListen, run
from emulator.settings import EmulatorSettings
from gpu_telemetry import logs
from gpu_telemetry.settings import LogSettings


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to serve the pages and the control API.")
@click.option("--nodes", type=int, help="How many nodes.")
@click.option("--gpus", type=int, help="GPUs of each node.")
@click.option("--seed", type=int, help="The same seed is the same fleet.")
@click.option("--dialect", help="The exporter's release: 1.7, 2.4, 3.3, 3.4, 3.5, 4.4, 4.5, 4.6 or mixed.")
@click.option("--models", help="GPU models, comma-separated: h100, a100-80, a100-40, l40s, t4.")
@click.option("--mig-nodes", type=int, help="How many nodes have their GPUs split into MIG instances.")
def command(**flags: str | int | None) -> None:
    """Run an emulated fleet of dcgm-exporters.

    A flag that is not given is read from the environment: EMULATOR_LISTEN, EMULATOR_NODES, and so on.
    """
    settings = EmulatorSettings.load(**flags)
    logs.configure(LogSettings.load())
    try:
        run(settings)
    except CannotListen as error:
        raise click.ClickException(str(error)) from error
