"""The stack as a person sees it: a table that lives in a terminal, and a line now and then where there is none."""

from collections.abc import Sequence
from typing import Final

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpu_telemetry.local.directory import PartState, Rates, StackState
from gpu_telemetry.local.observe import GpuView, NodeView, Snapshot

# Beyond this many nodes a row stands for a node instead of a GPU.
_DETAILED_NODES: Final = 4
_MOST_ROWS: Final = 20
_MOST_ALERTS: Final = 5
_WARM_CELSIUS: Final = 85
_HOT_CELSIUS: Final = 90
_STATUS_STYLE: Final = {"healthy": "green", "warning": "yellow", "critical": "bold red", "down": "bold red"}
_SERVICE: Final = {"api": "API"}
_PART_STYLE: Final = {"up": "green", "starting": "cyan", "waiting": "dim", "restarting": "bold red", "ended": "dim"}


def render(state: StackState, snapshot: Snapshot) -> RenderableType:
    """Everything, for a terminal."""
    parts: list[RenderableType] = [_fleet(snapshot)]
    if snapshot.alerts:
        parts.append(_alerts(snapshot))
    parts += [Text(summary(snapshot, state.rates), style="bold"), _stack(state.parts), _urls(state)]
    return Group(*parts)


def summary(snapshot: Snapshot, rates: Rates) -> str:
    """Everything in one line."""
    silent = [f"the {_SERVICE.get(name, name)} does not answer: {why}" for name, why in snapshot.unanswered.items()]
    if "api" in snapshot.unanswered:
        return " | ".join(silent)
    nodes, gpus = snapshot.fleet.nodes, snapshot.fleet.gpus
    words = [*silent, f"{nodes.total - nodes.down - nodes.unknown} of {nodes.total} nodes up"]
    words.append(
        f"{gpus.total} GPUs" if gpus.reporting == gpus.total else f"{gpus.reporting} of {gpus.total} GPUs report"
    )
    hottest = _hottest(snapshot.shown())
    if hottest is not None:
        words.append(f"hottest {hottest.node_id} GPU {hottest.gpu_index} {hottest.temperature_celsius:.1f} °C")
    words.append(f"{_rate(rates.scrapes)} scrapes/s, {_rate(rates.published)} records/s")
    words.append(f"lag {'?' if snapshot.consumer_lag is None else snapshot.consumer_lag}")
    words.append(f"open alerts {snapshot.fleet.alerts.total}")
    return " | ".join(words)


def _count(gpus: Sequence[GpuView]) -> int:
    """How many GPUs these are; several MIG instances are one."""
    return len({gpu.gpu_uuid for gpu in gpus})


def _hottest(gpus: Sequence[GpuView]) -> GpuView | None:
    """The hottest of those that tell their temperature."""
    measured = [gpu for gpu in gpus if gpu.temperature_celsius is not None]
    return max(measured, key=lambda gpu: gpu.temperature_celsius or 0, default=None)


def _fleet(snapshot: Snapshot) -> RenderableType:
    if "api" in snapshot.unanswered:
        return Text("nothing is known of the nodes while the API does not answer", style="dim")
    if not snapshot.nodes:
        return Text("no node has been heard of yet", style="dim")
    if len(snapshot.nodes) <= _DETAILED_NODES:
        return Columns([_node(node, snapshot.gpus) for node in snapshot.nodes])
    shown = snapshot.shown()
    table = Table(box=None, pad_edge=False)
    for heading in ("node", "datacenter", "status", "GPUs", "hottest", "power", "busy", "alerts"):
        table.add_column(heading, justify="left" if heading in {"node", "datacenter", "status"} else "right")
    for node in snapshot.nodes[:_MOST_ROWS]:
        gpus = [gpu for gpu in shown if gpu.node_id == node.node_id]
        hottest = _hottest(gpus)
        # What the GPU as a whole draws stands in the row of each of its MIG instances.
        power = sum({gpu.gpu_uuid: gpu.power_watts or 0 for gpu in gpus}.values())
        busy = _count([gpu for gpu in gpus if gpu.workload])
        table.add_row(
            node.node_id,
            node.datacenter or "",
            Text(node.status, style=_STATUS_STYLE.get(node.status, "dim")),
            str(_count(gpus)),
            _celsius(hottest.temperature_celsius if hottest else None),
            f"{power:.0f} W",
            str(busy),
            str(node.active_alerts),
        )
    if len(snapshot.nodes) > _MOST_ROWS:
        table.add_row(f"... and {len(snapshot.nodes) - _MOST_ROWS} more")
    return table


def _node(node: NodeView, gpus: Sequence[GpuView]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    # Widths of their own, so that nothing moves when a value gains a digit.
    for heading, width in (("GPU", 4), ("°C", 3), ("W", 4), ("%", 3)):
        table.add_column(heading, justify="right", min_width=width)
    table.add_column("workload", min_width=26, max_width=26, no_wrap=True)
    own = [gpu for gpu in gpus if gpu.node_id == node.node_id]
    newest = {gpu.gpu_index: gpu.collected_at for gpu in sorted(own, key=lambda gpu: gpu.collected_at)}
    # A GPU that is gone is missed at its index, unless another took its place.
    rows = [gpu for gpu in own if node.shows(gpu) or gpu.collected_at == newest[gpu.gpu_index]]
    for gpu in sorted(rows, key=lambda gpu: (gpu.gpu_index, gpu.mig_instance or ""))[:_MOST_ROWS]:
        index = f"{gpu.gpu_index}" if gpu.mig_instance is None else f"{gpu.gpu_index}/{gpu.mig_instance}"
        if not node.shows(gpu):
            table.add_row(index, "-", "-", "-", f"seen {gpu.collected_at[:16].replace('T', ' ')} UTC", style="dim")
            continue
        table.add_row(
            index,
            _celsius(gpu.temperature_celsius),
            _number(gpu.power_watts),
            _number(gpu.gpu_utilization_percent),
            gpu.workload or Text("-", style="dim"),
        )
    style = _STATUS_STYLE.get(node.status, "dim")
    title = Text.assemble((node.node_id, "bold"), " ", (node.status, style))
    return Panel(table, title=title, title_align="left", border_style=style, expand=False)


def _alerts(snapshot: Snapshot) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False)
    for alert in snapshot.alerts[:_MOST_ALERTS]:
        where = alert.node_id if alert.gpu_index is None else f"{alert.node_id} GPU {alert.gpu_index}"
        style = _STATUS_STYLE.get(alert.severity, "yellow")
        table.add_row(Text(f"[{alert.severity}]", style=style), where, alert.alert_type, alert.message)
    if len(snapshot.alerts) > _MOST_ALERTS:
        table.add_row("", f"... and {len(snapshot.alerts) - _MOST_ALERTS} more")
    return table


def _stack(parts: Sequence[PartState]) -> RenderableType:
    cells = []
    for part in parts:
        restarts = f" ({part.restarts} restarts)" if part.restarts else ""
        style = _PART_STYLE.get(part.state, "")
        cells.append(Text.assemble(f"{part.name} ", (f"{part.state}{restarts}", style), no_wrap=True))
    return Columns(cells, padding=(0, 3))


def _urls(state: StackState) -> RenderableType:
    cells = [Text(f"{name} {url}", style="dim", no_wrap=True) for name, url in shown_urls(state).items()]
    return Columns(cells, padding=(0, 3))


def shown_urls(state: StackState) -> dict[str, str]:
    """The addresses that people open first."""
    return {name: url for name, url in state.urls.items() if not name.endswith("metrics")}


def _celsius(value: float | None) -> Text:
    if value is None:
        return Text("-", style="dim")
    style = "bold red" if value > _HOT_CELSIUS else "yellow" if value > _WARM_CELSIUS else ""
    return Text(f"{value:.0f}", style=style)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _rate(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"
