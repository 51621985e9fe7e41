"""The control API: what the fleet is doing, faults in and out, jobs moved."""

import logging
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from emulator.faults import FAULTS, Fault, kind_named
from emulator.fleet import Fleet
from emulator.gpu import Gpu
from emulator.migration import Migrations
from emulator.node import Node
from emulator.problems import UnusableRequest

logger = logging.getLogger(__name__)

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
_LONGEST_KEY: Final = 512
_MOST_DIGITS_OF_AN_INDEX: Final = 9


class GpuAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GPU as a request names it: its node, and its index or UUID; `node` and `gpu` are short for the long names."""

    node: str | None = None
    node_id: str | None = None
    gpu: int | str | None = None
    gpu_index: int | None = None
    gpu_uuid: str | None = None

    def named_node(self) -> str:
        """The node.

        Raises:
            UnusableRequest: it is not given, or twice.
        """
        given = [name for name in (self.node, self.node_id) if name is not None]
        if len(given) != 1:
            raise UnusableRequest("expected one of `node`, `node_id`: the node's name")
        return given[0]

    def named_gpu(self) -> int | str | None:
        """The GPU's index or UUID, or None if none is given.

        Raises:
            UnusableRequest: it is given twice.
        """
        given = [which for which in (self.gpu, self.gpu_index, self.gpu_uuid) if which is not None]
        if len(given) > 1:
            raise UnusableRequest("expected at most one of `gpu`, `gpu_index`, `gpu_uuid`")
        return given[0] if given else None

    def required_gpu(self) -> int | str:
        """The GPU's index or UUID.

        Raises:
            UnusableRequest: it is not given, or twice.
        """
        which = self.named_gpu()
        if which is None:
            raise UnusableRequest("expected one of `gpu`, `gpu_index`, `gpu_uuid`")
        return which


class MigrationRequest(GpuAddress, frozen=True, forbid_unknown_fields=True):
    """The GPU whose jobs are to be moved, and where to; without a target the coolest free GPU is taken."""

    target: GpuAddress | None = None


_Body = TypeVar("_Body")
_ADDRESS_FIELDS: Final = GpuAddress.__struct_fields__


def _decoded(raw: bytes, shape: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableRequest(f"expected a JSON object: {error}") from error


def _json(body: object, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


class Control:
    """The handlers of the control API."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._migrations = Migrations(fleet)

    def routes(self) -> list[web.RouteDef]:
        """The routes, for an application."""
        return [
            web.get("/control/state", self.state),
            web.get("/control/kinds", self.kinds),
            web.get("/control/faults", self.faults),
            web.post("/control/faults", self.set_fault),
            web.delete("/control/faults", self.clear_fault),
            web.post("/control/migrate", self.migrate),
        ]

    async def state(self, request: web.Request) -> web.Response:
        """Every node and GPU as it is now; `?node=` for one node alone."""
        only = request.query.get("node")
        now = self._fleet.now()
        nodes = self._fleet.advanced_nodes() if only is None else [self._fleet.node(only)]
        return _json({"seconds": now, "nodes": [_node_state(node, now) for node in nodes]})

    async def kinds(self, _request: web.Request) -> web.Response:
        """The faults that there are."""
        return _json([{"kind": kind, "description": description} for kind, description in FAULTS.items()])

    async def faults(self, _request: web.Request) -> web.Response:
        """The faults that are active."""
        return _json([_fault_state(fault) for fault in self._fleet.faults()])

    async def set_fault(self, request: web.Request) -> web.Response:
        """Put a fault in: 201, or 200 if the very same one was active."""
        kind, address, parameters = _fault_request(_decoded(await request.read(), dict[str, Any]))
        fault, is_new = self._fleet.set_fault(kind_named(kind), address.named_node(), address.named_gpu(), parameters)
        if is_new:
            logger.info("Fault %s is active on %s", fault.kind, _whom(fault))
        return _json(_fault_state(fault), HTTPStatus.CREATED if is_new else HTTPStatus.OK)

    async def clear_fault(self, request: web.Request) -> web.Response:
        """Take a fault out, named in the body or in the query; clearing what is not active is no error."""
        raw = await request.read()
        given = _decoded(raw, dict[str, Any]) if raw else _from_query(request)
        kind, address, parameters = _fault_request(given)
        if parameters:
            raise UnusableRequest(f"clearing takes no parameters, got {', '.join(map(repr, parameters))}")
        node_id, which = address.named_node(), address.named_gpu()
        cleared = self._fleet.clear_fault(kind_named(kind), node_id, which)
        if cleared:
            where = node_id if which is None else f"{node_id} GPU {which}"
            logger.info("Fault %s is cleared on %s", kind, where)
        return _json({"kind": kind, "node": node_id, "gpu": which, "cleared": cleared})

    async def migrate(self, request: web.Request) -> web.Response:
        """Move the jobs of a GPU to a free one."""
        wanted = _decoded(await request.read(), MigrationRequest)
        key = request.headers.get(IDEMPOTENCY_HEADER)
        if key is not None and not 0 < len(key) <= _LONGEST_KEY:
            raise UnusableRequest(f"expected 1 to {_LONGEST_KEY} characters in the header {IDEMPOTENCY_HEADER}")
        target = None if wanted.target is None else (wanted.target.named_node(), wanted.target.required_gpu())
        return _json(self._migrations.migrate(wanted.named_node(), wanted.required_gpu(), target, key))


def _fault_request(given: dict[str, Any]) -> tuple[str, GpuAddress, dict[str, Any]]:
    """The kind, the GPU or node, and the parameters of a request that holds them side by side."""
    parameters = dict(given)
    kind = parameters.pop("kind", None)
    if not isinstance(kind, str):
        raise UnusableRequest(f"expected `kind`: one of {', '.join(FAULTS)}")
    named = {name: parameters.pop(name) for name in _ADDRESS_FIELDS if name in parameters}
    try:
        return kind, msgspec.convert(named, GpuAddress), parameters
    except msgspec.ValidationError as error:
        raise UnusableRequest(str(error)) from error


def _from_query(request: web.Request) -> dict[str, Any]:
    given: dict[str, Any] = dict(request.query)
    for name in ("gpu", "gpu_index"):
        text = str(given.get(name, ""))
        if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS_OF_AN_INDEX:
            given[name] = int(text)
    return given


def _whom(fault: Fault) -> str:
    return fault.node_id if fault.gpu_index is None else f"{fault.node_id} GPU {fault.gpu_index}"


def _fault_state(fault: Fault) -> dict[str, Any]:
    return {
        "kind": fault.kind,
        "node": fault.node_id,
        "gpu": fault.gpu_index,
        "parameters": fault.parameters,
        "since": fault.since,
    }


def _node_state(node: Node, now: float) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "datacenter": node.datacenter,
        "exporter": node.exporter.dialect.first_tag,
        "faults": [fault.kind for fault in node.faults.values() if fault.gpu_index is None],
        "gpus": [_gpu_state(gpu, now) for gpu in node.gpus],
    }


def _gpu_state(gpu: Gpu, now: float) -> dict[str, Any]:
    workloads = [
        {
            "namespace": slot.job.workload.namespace,
            "pod": slot.job.workload.pod,
            "container": slot.job.workload.container,
            "mig_instance": slot.instance_id if slot.profile else None,
        }
        for slot in gpu.slots
        if slot.job is not None
    ]
    return {
        "gpu_index": gpu.index,
        "gpu_uuid": gpu.uuid,
        "model": gpu.model.name,
        "temperature_celsius": round(gpu.temperature(now), 2),
        "power_watts": round(gpu.power_watts, 2),
        "gpu_utilization_percent": round(100 * gpu.load, 2),
        "workload": workloads[0] if workloads else None,
        "workloads": workloads,
        "accepts_jobs": gpu.accepts_jobs(now),
        "faults": list(gpu.faults),
    }
