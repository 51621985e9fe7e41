"""The faults that can be put into the fleet: what each is called, whom it strikes, what it does, what it takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class FaultKind(StrEnum):
    """Every fault by the name that the control API and the command line know it by."""

    OVERHEAT = "overheat"
    POWER = "power"
    MEMORY_FULL = "memory_full"
    XID = "xid"
    GPU_LOST = "gpu_lost"
    SENTINELS = "sentinels"
    OUT_OF_RANGE = "out_of_range"
    CONVERSION_ERROR = "conversion_error"
    CONTRADICTION = "contradiction"
    UNESCAPED_LABEL = "unescaped_label"
    DUPLICATE_ROWS = "duplicate_rows"
    LABEL_CHURN = "label_churn"
    GARBAGE_LINE = "garbage_line"
    COUNTER_RESET = "counter_reset"
    FROZEN = "frozen"
    HTTP_500 = "http_500"
    EMPTY = "empty"
    CUT_SHORT = "cut_short"
    SLOW = "slow"
    HANG = "hang"
    DOWN = "down"


class FaultScope(StrEnum):
    """Whom a fault strikes: one GPU, or the node's whole page."""

    GPU = "gpu"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a fault can be told; where `default` or `high` is None, the model's power limit decides.

    `whole` says that it counts something, or is a code.
    """

    default: float | None
    low: float
    high: float | None
    help: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class FaultDescription:
    """What one kind of fault does."""

    scope: FaultScope
    help: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


# The most that a GPU can be told to draw, as a share of its power limit: no model gets warmer than 110 °C by it.
_MOST_OF_POWER_LIMIT: Final = 1.5

_GPU = FaultScope.GPU
_NODE = FaultScope.NODE

FAULTS: Final[Mapping[FaultKind, FaultDescription]] = {
    FaultKind.OVERHEAT: FaultDescription(
        _GPU,
        "The GPU's cooling fails: under load it climbs within 20 to 40 s to where the hardware's slowdown holds it, and"
        " cools by itself when its job is gone. An idle GPU gets a job at once.",
        {"celsius": Parameter(97.6, 60, 120, "Where the slowdown holds it, unless its load alone makes it warmer.")},
    ),
    FaultKind.POWER: FaultDescription(
        _GPU,
        "The GPU draws more than its power limit.",
        {"watts": Parameter(None, 1, None, "Its draw, up to 150 % of the model's limit; 115 % of it if not given.")},
    ),
    FaultKind.MEMORY_FULL: FaultDescription(
        _GPU,
        "The framebuffer is nearly full.",
        {"percent": Parameter(97.5, 0, 100, "Share of used in used + free.")},
    ),
    FaultKind.XID: FaultDescription(
        _GPU,
        "The XID gauge shows a code and keeps it, as the driver does, until the fault is cleared or the driver reloaded"
        " (counter_reset).",
        {
            "code": Parameter(79, 1, 10000, "The XID.", whole=True),
            "count": Parameter(
                1, 1, 1000, "How often it came so far; more than before makes it come again now.", whole=True
            ),
        },
    ),
    FaultKind.GPU_LOST: FaultDescription(_GPU, "The GPU's rows vanish from the page."),
    FaultKind.SENTINELS: FaultDescription(_GPU, "The GPU's values are DCGM's numbers for 'no value'."),
    FaultKind.OUT_OF_RANGE: FaultDescription(
        _GPU, "Utilisations and temperatures are absurd numbers, as exporters have printed them (808334905, 127622)."
    ),
    FaultKind.CONVERSION_ERROR: FaultDescription(
        _GPU, "The PROF values of the GPU are the text that the exporter prints for an unknown field type."
    ),
    FaultKind.CONTRADICTION: FaultDescription(_GPU, "The PROF values are 0 while GPU_UTIL is 99."),
    FaultKind.UNESCAPED_LABEL: FaultDescription(
        _GPU, "The job's name holds a quotation mark, which the exporter does not escape: no row of the GPU is valid."
    ),
    FaultKind.DUPLICATE_ROWS: FaultDescription(_GPU, "Each row of the GPU stands twice, as in 3.3.5-3.4.0."),
    FaultKind.LABEL_CHURN: FaultDescription(
        _GPU, "Pods come and go on the GPU: its rows name another one at each scrape, and none at every third."
    ),
    FaultKind.GARBAGE_LINE: FaultDescription(
        _NODE,
        "Malformed lines stand between the rows.",
        {"lines": Parameter(1, 1, 1000, "How many on each page.", whole=True)},
    ),
    FaultKind.COUNTER_RESET: FaultDescription(
        _NODE,
        "The driver was reloaded: at the moment it is set, what it counts since its start begins again at 0, and XIDs"
        " are gone, their faults too; what a GPU keeps over its life stays.",
    ),
    FaultKind.FROZEN: FaultDescription(_NODE, "The values stop changing while the health check says OK."),
    FaultKind.HTTP_500: FaultDescription(_NODE, "The page is answered with status 500."),
    FaultKind.EMPTY: FaultDescription(_NODE, "The page is answered with status 200 and no body, as during a reload."),
    FaultKind.CUT_SHORT: FaultDescription(_NODE, "The connection ends in the middle of the page."),
    FaultKind.SLOW: FaultDescription(
        _NODE,
        "The page comes drop by drop; after 10 s the exporter's own time-out cuts it off.",
        {"seconds": Parameter(5, 0.01, 600, "How long the whole page takes.")},
    ),
    FaultKind.HANG: FaultDescription(_NODE, "The page is not answered until the client leaves (at most 10 minutes)."),
    FaultKind.DOWN: FaultDescription(_NODE, "The connection is dropped without an answer, the health check's too."),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that is active. `gpu_index` is None for one that strikes the whole node; `since` is RFC 3339."""

    kind: FaultKind
    node_id: str
    gpu_index: int | None
    parameters: Mapping[str, float]
    since: str


class UnusableFault(ValueError):
    """A fault that cannot be: the text says what is accepted."""


def kind_named(name: str) -> FaultKind:
    """The kind of that name.

    Raises:
        UnusableFault: there is none.
    """
    try:
        return FaultKind(name)
    except ValueError:
        raise UnusableFault(f"unknown fault kind {name!r}; accepted: {', '.join(FaultKind)}") from None


def checked_parameters(kind: FaultKind, given: Mapping[str, object], power_limit_watts: float) -> dict[str, float]:
    """The parameters of a fault, defaults filled in; one whose default is the model's is left out.

    `power_limit_watts` is that of the GPUs which it may strike.

    Raises:
        UnusableFault: one is unknown, no number of its kind, or out of its range.
    """
    known = FAULTS[kind].parameters
    for name in given:
        if name not in known:
            accepted = ", ".join(known) or "none"
            raise UnusableFault(f"unknown parameter {name!r} of fault {kind}; accepted: {accepted}")
    values: dict[str, float] = {}
    for name, parameter in known.items():
        value = given.get(name, parameter.default)
        if value is not None:
            high = _MOST_OF_POWER_LIMIT * power_limit_watts if parameter.high is None else parameter.high
            values[name] = _checked(kind, name, parameter, high, value)
    return values


def _checked(kind: FaultKind, name: str, parameter: Parameter, high: float, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and parameter.low <= value <= high:
        if not parameter.whole:
            return value
        if value == int(value):
            return int(value)
    number = "a whole number" if parameter.whole else "a number"
    raise UnusableFault(
        f"parameter {name!r} of fault {kind}: expected {number} from {parameter.low:g} to {high:g}, got {value!r}"
    )
