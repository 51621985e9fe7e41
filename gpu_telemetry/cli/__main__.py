"""`python -m gpu_telemetry.cli`: the command, where its script is not on the PATH."""

from gpu_telemetry.cli import main

main()
