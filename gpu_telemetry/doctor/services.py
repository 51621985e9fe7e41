"""The checks of our own services, by what they say of themselves over HTTP."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final

import httpx

from gpu_telemetry.doctor.finding import Finding, ok, wrong

# What is on this machine is asked straight, whatever proxy the environment names.
_LOOPBACK: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_BUILD: Final = re.compile(r'^gpu_bridge_build_info\{[^}]*version="([^"]*)"', re.MULTILINE)
_TARGETS: Final = re.compile(r"^gpu_bridge_targets (\S+)$", re.MULTILINE)
_RELOAD: Final = re.compile(r"^gpu_bridge_config_reload_success (\S+)$", re.MULTILINE)


def service_findings(urls: Mapping[str, str], *, timeout_seconds: float) -> Iterator[Finding]:
    """The findings about the bridge, the alert engine and the API at these base URLs."""
    with httpx.Client(timeout=timeout_seconds, mounts=dict.fromkeys(_LOOPBACK)) as client:
        for name, verb in (("bridge", "bridge"), ("alert engine", "alert-engine"), ("api", "api")):
            if name in urls:
                yield _service(client, name, verb, urls[name].rstrip("/"))


def _service(client: httpx.Client, name: str, verb: str, url: str) -> Finding:
    try:
        ready = client.get(f"{url}/readyz")
        if ready.status_code != httpx.codes.OK:
            return wrong(name, f"{url}: {_why(ready)}", "mend that; its log says more")
        said, complaint = _about(client, name, url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        return wrong(name, f"{url} does not answer: {reason}", f"start `gpu-telemetry {verb}`, or say where it is")
    if complaint is not None:
        return wrong(name, *complaint)
    return ok(name, f"{url} is ready{said}")


def _why(ready: httpx.Response) -> str:
    """What a service that is not ready says of it."""
    try:
        body: Any = ready.json()
    except ValueError:
        return f"HTTP {ready.status_code}"
    if isinstance(body, dict):
        for key in ("detail", "problems", "reasons"):
            said = body.get(key)
            if said:
                return "; ".join(map(str, said)) if isinstance(said, list) else str(said)
    return f"HTTP {ready.status_code}"


def _about(client: httpx.Client, name: str, url: str) -> tuple[str, tuple[str, str] | None]:
    """What else there is to say of a service that is ready, and what is wrong with it after all."""
    own = version("gpu-telemetry")
    if name == "bridge":
        page = client.get(f"{url}/metrics").raise_for_status().text
        build, targets, reload = _BUILD.search(page), _TARGETS.search(page), _RELOAD.search(page)
        theirs = build[1] if build else None
        if reload and float(reload[1]) != 1:
            return "", (f"{url}: its list of targets cannot be read", "its log names each error in the list")
        if targets and not float(targets[1]):
            return "", (f"{url} has nothing to scrape", "give it targets: BRIDGE_TARGETS_FILE or BRIDGE_HTTP_SD_URL")
        count = f", scrapes {float(targets[1]):g} nodes" if targets else ""
    elif name == "api":
        theirs = client.get(f"{url}/openapi.json").raise_for_status().json()["info"]["version"]
        count = ""
    else:
        return "", None
    if theirs is not None and theirs != own:
        return "", (f"{url} is of version {theirs}, this command of {own}", "run the same version everywhere")
    return f"{count}, version {theirs}", None
