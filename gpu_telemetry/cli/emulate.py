"""`gpu-telemetry emulate`: put faults into a running emulated fleet, take them out, move jobs."""

import math
from typing import Any

import click
import httpx

from emulator.faults import FAULTS, FaultKind

_DEFAULT_URL = "http://127.0.0.1:9400"
_TIMEOUT_SECONDS = 10.0


class _Emulator:
    """The control API of a running emulator; what goes wrong becomes one line and exit code 1."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def call(self, method: str, path: str, **content: Any) -> Any:  # noqa: ANN401 - any JSON value
        """The JSON answer of a call."""
        try:
            # Straight to the emulator, whatever proxy the environment names.
            answer = httpx.request(method, f"{self._url}{path}", timeout=_TIMEOUT_SECONDS, trust_env=False, **content)
        except httpx.ConnectError:
            raise click.ClickException(f"no emulator answers at {self._url} (is it running? see --url)") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise click.ClickException(f"{self._url}{path}: {error or type(error).__name__}") from None
        try:
            body = answer.json()
        except ValueError:
            raise click.ClickException(f"{self._url}{path}: status {answer.status_code} and no JSON") from None
        if answer.is_error:
            detail = body.get("detail") if isinstance(body, dict) else None
            raise click.ClickException(str(detail or f"{self._url}{path}: status {answer.status_code}"))
        return body


_url_option = click.option(
    "--url", envvar="EMULATOR_URL", default=_DEFAULT_URL, show_default=True, help="Where the emulator listens."
)


def _kinds_help() -> str:
    lines = []
    for kind, description in FAULTS.items():
        parameters = "".join(f" [{name}: {known.help}]" for name, known in description.parameters.items())
        whom = "one GPU" if description.scope == "gpu" else "the node"
        lines.append(f"{kind} ({whom}): {description.help}{parameters}")
    return "\n\n".join(lines)


def _parsed_parameters(pairs: tuple[str, ...]) -> dict[str, float]:
    parameters: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            parameters[name] = float(text)
        except ValueError:
            parameters[name] = math.nan
        if not math.isfinite(parameters[name]):
            raise click.BadParameter(f"expected NAME=NUMBER, got {pair!r}", param_hint="--set")
    return parameters


def _whom(node: str, gpu: int | None) -> str:
    return node if gpu is None else f"{node} GPU {gpu}"


@click.group()
def command() -> None:
    """Put a fault into a running emulated fleet, take it out, or move a job."""


@command.command(epilog=_kinds_help())
@click.argument("kind", type=click.Choice([str(kind) for kind in FaultKind]), metavar="KIND")
@click.option("--node", required=True, help="The node's name, as in node-2.")
@click.option("--gpu", type=int, help="The GPU's index, for a fault that strikes one GPU.")
@click.option("--clear", is_flag=True, help="Take the fault out.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=NUMBER", help="A parameter of the fault; may be repeated.")
@_url_option
def fault(kind: str, node: str, gpu: int | None, pairs: tuple[str, ...], url: str, *, clear: bool) -> None:
    """Put a fault of a KIND into a node or a GPU, or take it out. The kinds are described below."""
    key: dict[str, Any] = {"kind": kind, "node": node} | ({} if gpu is None else {"gpu": gpu})
    if not clear:
        _Emulator(url).call("POST", "/control/faults", json=key | _parsed_parameters(pairs))
        print(f"{kind} is active on {_whom(node, gpu)}")
        return
    if pairs:
        raise click.UsageError("--clear takes no --set")
    cleared = _Emulator(url).call("DELETE", "/control/faults", params=key)["cleared"]
    print(f"{kind} {'is cleared' if cleared else 'was not active'} on {_whom(node, gpu)}")


@command.command()
@_url_option
def faults(url: str) -> None:
    """List the faults that are active."""
    active = _Emulator(url).call("GET", "/control/faults")
    for one in active:
        parameters = "".join(f" {name}={value:g}" for name, value in one["parameters"].items())
        print(f"{one['kind']} on {_whom(one['node'], one['gpu'])} since {one['since']}{parameters}")
    if not active:
        print("no fault is active")


@command.command()
@click.option("--node", required=True, help="The node's name.")
@click.option("--gpu", required=True, type=int, help="The index of the GPU whose job is to be moved.")
@_url_option
def migrate(node: str, gpu: int, url: str) -> None:
    """Move the job of a GPU to the coolest free GPU."""
    moved = _Emulator(url).call("POST", "/control/migrate", json={"node_id": node, "gpu_index": gpu})
    for workload in moved["workloads"]:
        print(
            f"{workload['namespace']}/{workload['pod']} moved from {_whom(node, gpu)} to "
            f"{_whom(moved['to']['node_id'], moved['to']['gpu_index'])}"
        )
