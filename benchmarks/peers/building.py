"""Telegraf and an OpenTelemetry collector, built from their source packages at pinned versions, with Go's own tools.

What is fetched and built is kept outside the repository: under GPU_TELEMETRY_CACHE, else in the user's cache.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from gpu_telemetry.local.kafka_jars import default_cache

_HERE: Final = Path(__file__).parent
_VERSION_OF: Final = {
    "telegraf": "github.com/influxdata/telegraf",
    "otelcol": "github.com/open-telemetry/opentelemetry-collector-contrib/receiver/prometheusreceiver",
}

_OURS: Final = ("main.go", "go.mod")


def version(peer: str) -> str:
    """The pinned version of a peer."""
    found = re.search(rf"{re.escape(_VERSION_OF[peer])} (v\S+)", (_HERE / peer / "go.mod").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{peer}/go.mod pins no {_VERSION_OF[peer]}")
    return found[1]


def built(peer: str) -> Path:
    """The peer's program; built first if it is not in the cache, which takes minutes and a gigabyte or two.

    Raises:
        FileNotFoundError: there is no Go here.
        subprocess.CalledProcessError: it does not build; Go has said why.
    """
    folder = default_cache() / "peers" / f"{peer}-{version(peer)}"
    program = folder / peer
    # (Go writes into the go.mod there; the folder's name tells the version.)
    if program.exists() and (folder / "main.go").read_bytes() == (_HERE / peer / "main.go").read_bytes():
        return program
    go = shutil.which("go")
    if go is None:
        raise FileNotFoundError("building the peers needs Go 1.26 or newer on the PATH")
    folder.mkdir(parents=True, exist_ok=True)
    for file in _OURS:
        shutil.copyfile(_HERE / peer / file, folder / file)
    print(f"building {peer} {version(peer)}; this takes minutes, once", file=sys.stderr)
    # Our go.mod names what we use; Go adds what that needs in turn, which the versions given here settle.
    environment = os.environ | {"GOFLAGS": "-mod=mod -p=2"}
    partial = folder / f"{peer}.partial"
    command = ["nice", "-n", "19", go, "build", "-trimpath", "-ldflags=-s", "-o", str(partial), "."]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    partial.replace(program)
    return program
