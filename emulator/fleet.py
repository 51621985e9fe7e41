"""The fleet: every node by its name, its page, and what may be asked of it or done to it."""

from collections.abc import Iterator, Mapping

from emulator.faults import FAULTS, Fault, FaultKind, FaultScope, UnusableFault, checked_parameters
from emulator.gpu import Gpu
from emulator.models import MODELS
from emulator.node import Node
from emulator.page import PageWriter
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import Clock, rfc3339


class NotInFleet(LookupError):
    """A node or a GPU that is not there: the text says which are."""


class Fleet:
    """All nodes, moved by one clock."""

    def __init__(self, settings: EmulatorSettings, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self.nodes: dict[str, Node] = {}
        self._writers: dict[str, PageWriter] = {}
        for number in range(settings.nodes):
            node = Node(
                settings.node_id_of(number),
                settings.datacenter_of(number),
                model=MODELS[settings.model_of(number)],
                gpus=settings.gpus,
                exporter=settings.exporter_of(number),
                mig=settings.has_mig(number),
                seed=settings.seed,
            )
            self.nodes[node.node_id] = node
            self._writers[node.node_id] = PageWriter(node, seed=settings.seed)

    def now(self) -> float:
        """Virtual seconds since the fleet began."""
        return self._clock.monotonic() - self._started

    def node(self, node_id: str) -> Node:
        """The node of that name, advanced to now.

        Raises:
            NotInFleet: there is none.
        """
        node = self.nodes.get(node_id)
        if node is None:
            raise NotInFleet(f"no node {node_id!r}; accepted: {_first_and_last(list(self.nodes))}")
        node.advance(self.now())
        return node

    def advanced_nodes(self) -> Iterator[Node]:
        """Every node, advanced to now."""
        now = self.now()
        for node in self.nodes.values():
            node.advance(now)
            yield node

    def gpu(self, node: Node, which: int | str) -> Gpu:
        """The GPU of a node by its index or its UUID.

        Raises:
            NotInFleet: the node has no such GPU.
        """
        for gpu in node.gpus:
            if which in (gpu.index, gpu.uuid):
                return gpu
        raise NotInFleet(
            f"no GPU {which!r} on {node.node_id}; accepted: the indices 0 to {len(node.gpus) - 1} or their UUIDs"
        )

    def page(self, node_id: str) -> bytes:
        """A node's page now.

        Raises:
            NotInFleet: there is no such node.
        """
        self.node(node_id)
        return self._writers[node_id].page(self.now())

    def faults(self) -> list[Fault]:
        """Every active fault, in the order of the nodes."""
        return [fault for node in self.nodes.values() for fault in node.faults.values()]

    def set_fault(
        self, kind: FaultKind, node_id: str, which: int | str | None, parameters: Mapping[str, object]
    ) -> tuple[Fault, bool]:
        """Put a fault in; the second value is False if the very same one was active already.

        Raises:
            NotInFleet: there is no such node or GPU.
            UnusableFault: a GPU is missing or one too many, or a parameter is wrong.
        """
        node, gpu_index = self._struck(kind, node_id, which)
        checked = checked_parameters(kind, parameters, node.gpus[0].model.tdp_watts)
        fault = Fault(kind, node_id, gpu_index, checked, rfc3339(self._clock.now()))
        is_new = node.set_fault(fault, self.now())
        return node.faults[kind, gpu_index], is_new

    def clear_fault(self, kind: FaultKind, node_id: str, which: int | str | None) -> bool:
        """Take a fault out; False if it was not active.

        Raises:
            NotInFleet: there is no such node or GPU.
            UnusableFault: a GPU is missing or one too many.
        """
        node, gpu_index = self._struck(kind, node_id, which)
        return node.clear_fault(kind, gpu_index, self.now())

    def _struck(self, kind: FaultKind, node_id: str, which: int | str | None) -> tuple[Node, int | None]:
        node = self.node(node_id)
        if FAULTS[kind].scope is FaultScope.NODE:
            if which is not None:
                raise UnusableFault(f"fault {kind} strikes a whole node: expected no GPU, got {which!r}")
            return node, None
        if which is None:
            raise UnusableFault(
                f"fault {kind} strikes one GPU: expected its index (0 to {len(node.gpus) - 1}) or its UUID"
            )
        return node, self.gpu(node, which).index


def _first_and_last(names: list[str]) -> str:
    shown = 4
    return ", ".join(names) if len(names) <= shown else f"{', '.join(names[:2])}, ... {names[-1]}"
