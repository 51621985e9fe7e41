"""What a batch tells of nodes, GPUs and where they stand, and the writing of it in the order of the keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

from psycopg import Connection

from alerting.partition import OwnedNode, Placement
from alerting.queries import SQL
from alerting.transitions import NodeStatus
from gpu_telemetry.records import GpuRecord, ScrapeRecord

# What a placement last said of its GPU; compared as one with each record's.
described_gpu = attrgetter("model", "driver_version", "pci_bus_id", "memory_total_mib")


@dataclass(slots=True)
class _Turns:
    """What the closing records of one node in a batch say together: the newest word on each matter."""

    hostname: str | None = None
    datacenter: str | None = None
    instance: str | None = None
    last_seen: datetime | None = None
    last_heard: datetime | None = None
    interval_ms: int = 0
    removed_at: datetime | None = None

    def take(self, record: ScrapeRecord) -> None:
        self.hostname = record.hostname or self.hostname
        self.datacenter = record.datacenter or self.datacenter
        self.instance = record.instance or self.instance
        self.last_heard = record.collected_at
        if record.up:
            self.last_seen = record.collected_at
        self.interval_ms = record.interval_ms
        self.removed_at = record.collected_at if record.removed else None


@dataclass(slots=True)
class _Gpu:
    """What the records of one GPU in a batch say of it together, from whichever nodes and in whichever order they came.

    The newest word counts; what it leaves out, an older one tells. The statement `upsert_gpus` does the same with what
    the table holds: nodes of several partitions, each with its own order, can speak of one GPU that was moved.
    """

    first_seen: datetime
    described_at: datetime
    # As `described_gpu` has it.
    described: tuple[Any, ...] = (None, None, None, None)

    def take(self, record: GpuRecord) -> None:
        at = record.collected_at
        *said, memory = described_gpu(record)
        # The memory of a MIG instance is not the GPU's.
        told = (*said, memory if record.mig_instance is None else None)
        newer, older = (told, self.described) if at >= self.described_at else (self.described, told)
        self.described = tuple(old if new is None else new for new, old in zip(newer, older, strict=True))
        self.described_at = max(at, self.described_at)
        self.first_seen = min(at, self.first_seen)


class Inventory:
    """The changes of one batch."""

    def __init__(self) -> None:
        self._first_seen: dict[str, GpuRecord | ScrapeRecord] = {}
        self._turns: dict[str, _Turns] = {}
        self._gpus: dict[str, _Gpu] = {}
        self._first_placed: list[tuple[Placement, GpuRecord]] = []

    def node(self, node: OwnedNode, record: GpuRecord | ScrapeRecord) -> None:
        """A node was heard of for the first time, or by a record that is older than all before."""
        node.first_seen = record.collected_at
        self._first_seen[record.node_id] = record

    def turn(self, record: ScrapeRecord) -> None:
        """A node's newest turn so far closed."""
        turns = self._turns.get(record.node_id)
        if turns is None:
            turns = self._turns[record.node_id] = _Turns()
        turns.take(record)

    def gpu(self, node: OwnedNode, placement: Placement | None, record: GpuRecord, *, newest: bool) -> Placement:
        """A GPU at a place where it was not seen (so early) before, or that is described anew; its placement."""
        at = record.collected_at
        if placement is None:
            placement = Placement(0, described_gpu(record), at)
            node.placements[record.gpu_index, record.gpu_uuid, record.mig_instance] = placement
            self._first_placed.append((placement, record))
        elif at < placement.since:
            placement.since = at
            self._first_placed.append((placement, record))
        elif newest:
            placement.gpu = described_gpu(record)
        else:
            return placement
        gpu = self._gpus.get(record.gpu_uuid)
        if gpu is None:
            gpu = self._gpus[record.gpu_uuid] = _Gpu(at, at)
        gpu.take(record)
        return placement

    def write(
        self, connection: Connection[Any], nodes: Mapping[str, OwnedNode], statuses: Mapping[str, NodeStatus]
    ) -> None:
        """Write it; `nodes` are all that the batch touched, with the status that each has now."""
        self._write_nodes(connection, nodes, statuses)
        self._write_gpus(connection)
        self._write_placements(connection)

    def _write_nodes(
        self, connection: Connection[Any], nodes: Mapping[str, OwnedNode], statuses: Mapping[str, NodeStatus]
    ) -> None:
        if self._first_seen:
            firsts = list(self._first_seen.values())
            connection.execute(
                SQL["insert_nodes"],
                {
                    "node_ids": [record.node_id for record in firsts],
                    "hostnames": [record.hostname for record in firsts],
                    "datacenters": [record.datacenter for record in firsts],
                    "ats": [record.collected_at for record in firsts],
                },
            )
        if self._turns:
            turns = list(self._turns.values())
            connection.execute(
                SQL["update_nodes"],
                {
                    "node_ids": list(self._turns),
                    "hostnames": [turn.hostname for turn in turns],
                    "datacenters": [turn.datacenter for turn in turns],
                    "instances": [turn.instance for turn in turns],
                    "statuses": [statuses[node_id] for node_id in self._turns],
                    "last_seens": [turn.last_seen for turn in turns],
                    "last_heards": [turn.last_heard for turn in turns],
                    "intervals": [turn.interval_ms for turn in turns],
                    "removed_ats": [turn.removed_at for turn in turns],
                },
            )
        others = sorted(
            node_id
            for node_id, node in nodes.items()
            if node_id not in self._turns and node.stored and statuses[node_id] != node.status
        )
        if others:
            connection.execute(
                SQL["update_node_statuses"],
                {"node_ids": others, "statuses": [statuses[node_id] for node_id in others]},
            )
        for node_id, node in nodes.items():
            node.status = statuses[node_id]

    def _write_gpus(self, connection: Connection[Any]) -> None:
        if not self._gpus:
            return
        gpus = list(self._gpus.values())
        models, driver_versions, pci_bus_ids, memory_totals = map(
            list, zip(*(gpu.described for gpu in gpus), strict=True)
        )
        connection.execute(
            SQL["upsert_gpus"],
            {
                "gpu_uuids": list(self._gpus),
                "models": models,
                "driver_versions": driver_versions,
                "pci_bus_ids": pci_bus_ids,
                "memory_totals": memory_totals,
                "first_seens": [gpu.first_seen for gpu in gpus],
                "described_ats": [gpu.described_at for gpu in gpus],
            },
        )

    def _write_placements(self, connection: Connection[Any]) -> None:
        if not self._first_placed:
            return
        # Keyed by what is unique: while a topic's partitions grow, a node can be met in two of them.
        firsts: dict[tuple[Any, ...], GpuRecord] = {}
        for _, record in self._first_placed:
            first = firsts.setdefault(_identity(record), record)
            if record.collected_at < first.collected_at:
                firsts[_identity(record)] = record
        made = connection.execute(
            SQL["insert_placements"],
            {
                "node_ids": [record.node_id for record in firsts.values()],
                "gpu_indexes": [record.gpu_index for record in firsts.values()],
                "gpu_uuids": [record.gpu_uuid for record in firsts.values()],
                "mig_instances": [record.mig_instance for record in firsts.values()],
                "mig_profiles": [record.mig_profile for record in firsts.values()],
                "sinces": [record.collected_at for record in firsts.values()],
            },
        ).fetchall()
        ids = {tuple(identity): placement_id for placement_id, *identity in made}
        for placement, record in self._first_placed:
            placement.placement_id = ids[_identity(record)]


def _identity(record: GpuRecord) -> tuple[str, int, str, str | None]:
    return (record.node_id, record.gpu_index, record.gpu_uuid, record.mig_instance)
