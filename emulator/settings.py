"""The emulator's settings."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from emulator.attribution import Attribution
from emulator.dialects import DIALECTS, MIXED
from emulator.entities import ENTITIES
from emulator.exporter import Exporter
from emulator.families import OPTIONAL_GROUPS
from emulator.models import MODELS
from gpu_telemetry.settings import ListenAddress, Settings


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _chosen_from(text: str, accepted: Collection[str]) -> str:
    for word in _words(text):
        if word not in accepted:
            raise ValueError(f"expected some of {', '.join(accepted)}, got {word!r}")
    return text


def _valid_models(text: str) -> str:
    if not _words(text):
        raise ValueError(f"expected at least one of {', '.join(MODELS)}")
    return _chosen_from(text, MODELS)


def _valid_datacenters(text: str) -> str:
    if not _words(text):
        raise ValueError("expected at least one datacenter")
    return text


def _valid_dialect(text: str) -> str:
    accepted = (*DIALECTS, MIXED)
    if text not in accepted:
        raise ValueError(f"expected one of {', '.join(accepted)}, got {text!r}")
    return text


def _valid_groups(text: str) -> str:
    return _chosen_from(text, OPTIONAL_GROUPS)


def _valid_entities(text: str) -> str:
    return _chosen_from(text, ENTITIES)


def _of_node(models: str, number: int) -> str:
    words = _words(models)
    return words[number % len(words)]


def _dialect_of_node(dialect: str, number: int) -> str:
    return list(DIALECTS)[number % len(DIALECTS)] if dialect == MIXED else dialect


class EmulatorSettings(Settings):
    """What the emulated fleet is, and where it is served."""

    model_config = SettingsConfigDict(env_prefix="EMULATOR_")

    listen: ListenAddress = Field("127.0.0.1:9400", description="HOST:PORT of the exporters' pages and of the control.")
    nodes: int = Field(2, ge=1, le=10_000, description="How many nodes; they are node-1, node-2, and so on.")
    gpus: int = Field(8, ge=1, le=16, description="GPUs of each node.")
    seed: int = Field(1, ge=0, le=2**63 - 1, description="All chance comes from it: the same seed is the same fleet.")
    dialect: Annotated[str, AfterValidator(_valid_dialect)] = Field(
        "4.5",
        description="The release of dcgm-exporter whose page is written: 1.7, 2.4, 3.3, 3.4, 3.5, 4.4, 4.5, 4.6; or "
        "mixed, where each node speaks the next one.",
    )
    hostname: Literal["node", "localhost", "none"] = Field(
        "node",
        description="What rows say of the host: its name; localhost, as an exporter says that could not find it; or "
        "none (the exporter's -n).",
    )
    attribution: Attribution = Field(
        Attribution.PODS,
        description="Whose work rows show: none, pods (Kubernetes), time_slicing (several pods on a GPU, a row for "
        "each), vgpu (the same, numbered and licensed), hpc_jobs.",
    )
    old_spelling: bool = Field(
        default=False,
        description="uuid, pod_name, pod_namespace and container_name in place of today's labels (the exporter's -o); "
        "1.7 has no others.",
    )
    collection_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="How often an exporter asks its GPUs; scrapes in between find the same values. 0: at every scrape. "
        "The real one's default is 30.",
    )
    models: Annotated[str, AfterValidator(_valid_models)] = Field(
        "h100",
        description="GPU models, comma-separated: h100, a100-80, a100-40, l40s, t4; each node has the next one.",
    )
    datacenters: Annotated[str, AfterValidator(_valid_datacenters)] = Field(
        "us-west-1,us-east-1,eu-west-1",
        description="Datacenters, comma-separated; each takes the next two nodes.",
    )
    mig_nodes: int = Field(
        0, ge=0, description="How many nodes, the last ones, have every GPU split into MIG instances."
    )
    nvlink_rows: int = Field(
        0,
        ge=0,
        le=18,
        description="NVLink rows of each GPU that has NVLinks, as a second block of their family; no release before "
        "3.3 has.",
    )
    optional_fields: Annotated[str, AfterValidator(_valid_groups)] = Field(
        "",
        description="Fields that are off by default, comma-separated: ecc, throttle_reasons, xid_count; those that its "
        "release has.",
    )

    entities: Annotated[str, AfterValidator(_valid_entities)] = Field(
        "",
        description="What has rows beside GPUs, comma-separated: nvswitch, cpu, cpu_core; no release before 3.3 has.",
    )

    @field_validator("mig_nodes")
    @classmethod
    def _mig_fits(cls, mig_nodes: int, info: ValidationInfo) -> int:
        # A field that is wrong itself is missing here, and reported by its own name.
        nodes, models, dialect = (info.data.get(name) for name in ("nodes", "models", "dialect"))
        if nodes is None or models is None or dialect is None:
            return mig_nodes
        if mig_nodes > nodes:
            raise ValueError(f"expected at most the {nodes} of EMULATOR_NODES, got {mig_nodes}")
        for number in range(nodes - mig_nodes, nodes):
            model = _of_node(models, number)
            if not MODELS[model].mig:
                raise ValueError(f"node-{number + 1} has model {model}, which has no MIG")
            if DIALECTS[_dialect_of_node(dialect, number)].bare:
                raise ValueError(f"node-{number + 1} has an exporter of release 1.7, which knows no MIG")
        return mig_nodes

    def model_of(self, number: int) -> str:
        """The key in `MODELS` of the GPUs of a node, counted from 0."""
        return _of_node(self.models, number)

    def datacenter_of(self, number: int) -> str:
        """The datacenter of a node, counted from 0."""
        datacenters = _words(self.datacenters)
        return datacenters[number // 2 % len(datacenters)]

    def node_id_of(self, number: int) -> str:
        """The name of a node, counted from 0."""
        return f"node-{number + 1}"

    def exporter_of(self, number: int) -> Exporter:
        """The exporter of a node, counted from 0."""
        dialect = DIALECTS[_dialect_of_node(self.dialect, number)]
        spoken = {"node": self.node_id_of(number), "localhost": "localhost", "none": None}
        return Exporter(
            dialect=dialect,
            hostname=spoken[self.hostname],
            attribution=self.attribution,
            old_spelling=self.old_spelling or dialect.old_spelling,
            optional_groups=frozenset(_words(self.optional_fields)),
            nvlink_rows=self.nvlink_rows,
            entities=frozenset(_words(self.entities)) if dialect.other_entities else frozenset(),
            collection_seconds=self.collection_seconds,
        )

    def has_mig(self, number: int) -> bool:
        """Whether a node, counted from 0, has its GPUs split."""
        return number >= self.nodes - self.mig_nodes
