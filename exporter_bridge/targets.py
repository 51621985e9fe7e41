"""What to scrape: Prometheus target groups, read from a file or an HTTP discovery, turned into targets.

A group is `{targets: [HOST:PORT, ...], labels: {...}}`. These labels of a group have a meaning here:

- `node_id`: the node's name; the address's host if absent. `datacenter`: where it stands. `instance`: what the series
  carry as `instance`; the address if absent. `hostname`: the records' host name; what the page says if absent. Any
  other plain label is added to the node's re-exposed series.
- `__scheme__`, `__metrics_path__`, `__param_NAME`, `__scrape_timeout__` (`5s`): as Prometheus has them.
- `__tls_ca_file__`, `__tls_cert_file__`, `__tls_key_file__`, `__tls_server_name__`: TLS and client certificates.
- `__basic_auth_username__` with `__basic_auth_password_file__`, or `__bearer_token_file__`: credentials. Secrets stand
  in files only, which are read again when they change.
- `__meta_*` is ignored. Any other name that starts with `__` is an error, so that a misspelt one is not lost.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

import xxhash

from exporter_bridge.documents import parse
from gpu_telemetry.records import MAX_IDENTIFIER_LENGTH
from gpu_telemetry.settings import split_address


class TargetError(ValueError):
    """A list of targets that cannot be used; the text names the list, the group and the key."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a group's exporters are reached beyond their address: TLS and credentials, both as names of files."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    username: str | None = None
    password_file: str | None = None
    bearer_token_file: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One exporter. `timeout_seconds` is None where the bridge's own applies; `labels` are the further plain ones."""

    node_id: str
    url: str
    instance: str
    datacenter: str | None = None
    hostname: str | None = None
    timeout_seconds: float | None = None
    access: Access = Access()
    labels: tuple[tuple[str, str], ...] = ()


_ACCESS_LABELS: Final[Mapping[str, str]] = {
    "__tls_ca_file__": "ca_file",
    "__tls_cert_file__": "cert_file",
    "__tls_key_file__": "key_file",
    "__tls_server_name__": "server_name",
    "__basic_auth_username__": "username",
    "__basic_auth_password_file__": "password_file",
    "__bearer_token_file__": "bearer_token_file",
}
_NODE_LABELS: Final = frozenset(("node_id", "datacenter", "instance", "hostname"))
_ADDRESSING_LABELS: Final = frozenset(("__scheme__", "__metrics_path__", "__scrape_timeout__"))
_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_DURATION: Final = re.compile("(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,9})ms)?")
_UNIT_SECONDS: Final = (3600.0, 60.0, 1.0, 0.001)
_LONGEST_TIMEOUT_SECONDS: Final = 86_400.0  # as BRIDGE_TIMEOUT_SECONDS


def shard_of(node_id: str, count: int) -> int:
    """Which of `count` shards a node falls in: stable over restarts and machines."""
    return xxhash.xxh3_64_intdigest(node_id.encode()) % count


def page_shard_of(node_id: str, count: int) -> int:
    """Which of `count` shards of the re-exposed page a node falls in; even within any one shard of the fleet."""
    return xxhash.xxh3_64_intdigest(node_id.encode(), seed=2) % count


def offset_of(node_id: str, interval_seconds: float) -> float:
    """The node's place in the interval, in seconds from its start: stable, and even over a fleet."""
    # Another seed than the shard's: within one shard the offsets are even too.
    return xxhash.xxh3_64_intdigest(node_id.encode(), seed=1) / 2**64 * interval_seconds


def read_targets(content: bytes, origin: str) -> list[Target]:
    """The targets in the text of a file or an answer: JSON, or YAML.

    Args:
        content: The text.
        origin: The name of the file or the URL, for errors.

    Raises:
        TargetError: it is no list of target groups, or one of its values is wrong.
    """
    try:
        groups = parse(content)
    except ValueError as error:
        raise TargetError(f"{origin}: {error}") from None
    if groups is None:
        raise TargetError(f"{origin}: expected a list of target groups, got nothing; a fleet without nodes is []")
    if not isinstance(groups, list):
        raise TargetError(f"{origin}: expected a list of target groups, got {_kind(groups)}")
    accesses: dict[Access, Access] = {}
    found = [
        replace(target, access=accesses.setdefault(target.access, target.access))
        for number, group in enumerate(groups, start=1)
        for target in _read_group(group, f"{origin}: group {number}")
    ]
    unique_nodes(found, origin)
    return found


def unique_nodes(targets: Iterable[Target], origin: str) -> dict[str, Target]:
    """The targets by node.

    Raises:
        TargetError: two targets claim one node; the text names both.
    """
    by_node: dict[str, Target] = {}
    for target in targets:
        other = by_node.setdefault(target.node_id, target)
        if other is not target:
            raise TargetError(
                f"{origin}: node_id {target.node_id!r} is claimed by two targets, {other.url} and {target.url}: "
                "give each a node_id label of its own"
            )
    return by_node


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"{value!r}"


def _read_group(group: object, where: str) -> Iterable[Target]:
    if not isinstance(group, dict):
        raise TargetError(f"{where}: expected a mapping with targets and labels, got {_kind(group)}")
    for key in group:
        if key not in {"targets", "labels"}:
            raise TargetError(f"{where}: {key}: unknown key; expected targets and labels")
    addresses = group.get("targets")
    if not isinstance(addresses, list):
        raise TargetError(f"{where}: targets: expected a list of HOST:PORT, got {_kind(addresses)}")
    labels = _read_labels(group.get("labels"), f"{where}: labels")
    if "node_id" in labels and len(addresses) > 1:
        raise TargetError(
            f"{where}: labels: node_id: {labels['node_id']!r} is claimed by {len(addresses)} targets, "
            f"{' and '.join(map(str, addresses[:2]))}: a group with a node_id has one target"
        )
    access = _read_access(labels, where)
    return [_read_target(address, labels, access, where) for address in addresses]


def _read_labels(labels: object, where: str) -> dict[str, str]:
    if labels is None:
        return {}
    if not isinstance(labels, dict):
        raise TargetError(f"{where}: expected a mapping, got {_kind(labels)}")
    for name, value in labels.items():
        if not isinstance(name, str) or not _LABEL_NAME.fullmatch(name):
            raise TargetError(f"{where}: {name}: expected a name of letters, digits and underscores")
        if not isinstance(value, str):
            # As Prometheus: a number or a boolean must be quoted, so that 1.0 and true stay what was written.
            raise TargetError(f"{where}: {name}: expected a string, got {_kind(value)}; put it in quotes")
        if name in _NODE_LABELS and not 0 < len(value) <= MAX_IDENTIFIER_LENGTH:
            raise TargetError(f"{where}: {name}: expected 1 to {MAX_IDENTIFIER_LENGTH} characters")
        if "\x00" in value or (not value.isascii() and _has_surrogate(value)):
            raise TargetError(f"{where}: {name}: a NUL character or a lone surrogate cannot be stored")
        if name.startswith("__"):
            _check_reserved(name, f"{where}: {name}")
    return {name: value for name, value in labels.items() if value and not name.startswith("__meta_")}


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _check_reserved(name: str, where: str) -> None:
    if name.startswith(("__meta_", "__param_")) or name in _ADDRESSING_LABELS or name in _ACCESS_LABELS:
        return
    if name == "__scrape_interval__":
        raise TargetError(f"{where}: one interval holds for all targets: set BRIDGE_INTERVAL_SECONDS")
    if name in {"__basic_auth_password__", "__bearer_token__"}:
        raise TargetError(f"{where}: a secret may not stand here: give {name[:-2]}_file__ with the name of a file")
    known = ", ".join(sorted(_ADDRESSING_LABELS | _ACCESS_LABELS.keys()))
    raise TargetError(f"{where}: unknown; expected one of {known}, __param_NAME, or __meta_*, which is ignored")


def _read_access(labels: Mapping[str, str], where: str) -> Access:
    access = Access(**{field: labels[label] for label, field in _ACCESS_LABELS.items() if label in labels})
    if (access.cert_file is None) != (access.key_file is None):
        raise TargetError(f"{where}: labels: __tls_cert_file__ and __tls_key_file__ go together")
    if access.server_name is not None and not access.server_name.isascii():
        raise TargetError(f"{where}: labels: __tls_server_name__: expected ASCII (a name's xn-- form)")
    if (access.username is None) != (access.password_file is None):
        raise TargetError(f"{where}: labels: __basic_auth_username__ and __basic_auth_password_file__ go together")
    if access.username is not None and access.bearer_token_file is not None:
        raise TargetError(f"{where}: labels: __bearer_token_file__: basic authentication is set already")
    return access


def _read_target(address: object, labels: Mapping[str, str], access: Access, where: str) -> Target:
    if not isinstance(address, str):
        raise TargetError(f"{where}: targets: expected HOST:PORT, got {_kind(address)}")
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise TargetError(f"{where}: targets: {error}") from None
    if port == 0 or not re.fullmatch(r"[^\s/?#@\\\x00-\x20]+", host):
        raise TargetError(f"{where}: targets: expected HOST:PORT, got {address!r}")
    if not address.isascii():
        raise TargetError(f"{where}: targets: expected a host in ASCII (its xn-- form) and a port, got {address!r}")
    scheme = labels.get("__scheme__", "http")
    if scheme not in {"http", "https"}:
        raise TargetError(f"{where}: labels: __scheme__: expected http or https, got {scheme!r}")
    path = labels.get("__metrics_path__", "/metrics")
    if not path.startswith("/"):
        raise TargetError(f"{where}: labels: __metrics_path__: expected a path that starts with /, got {path!r}")
    parameters = {name.removeprefix("__param_"): value for name, value in labels.items() if name[:8] == "__param_"}
    url = f"{scheme}://{address}{quote(path, safe='/%?&=:@!$()*+,;~')}"
    if parameters:
        url += ("&" if "?" in path else "?") + urlencode(parameters)
    timeout = labels.get("__scrape_timeout__")
    return Target(
        node_id=labels.get("node_id", host),
        url=url,
        instance=labels.get("instance", address),
        datacenter=labels.get("datacenter"),
        hostname=labels.get("hostname"),
        timeout_seconds=None if timeout is None else _seconds(timeout, f"{where}: labels: __scrape_timeout__"),
        access=access,
        labels=tuple(
            sorted(
                (name, value)
                for name, value in labels.items()
                if not name.startswith("__") and name not in _NODE_LABELS
            )
        ),
    )


def _seconds(text: str, where: str) -> float:
    match = _DURATION.fullmatch(text)
    amounts = [int(amount or 0) for amount in match.groups()] if match else []
    seconds = sum(amount * unit for amount, unit in zip(amounts, _UNIT_SECONDS, strict=False))
    if not 0 < seconds <= _LONGEST_TIMEOUT_SECONDS:
        raise TargetError(f"{where}: expected a duration such as 5s or 500ms, up to 24h, got {text!r}")
    return seconds


def read_secret(path: str) -> str:
    """A secret as it stands in its file, without the line's end.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty, is no text or has several lines. The error does not show what it holds.
    """
    try:
        secret = Path(path).read_text("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected text in UTF-8") from None
    if not secret or any(mark in secret for mark in "\r\n\x00"):
        raise ValueError(f"{path}: expected one line")
    return secret
