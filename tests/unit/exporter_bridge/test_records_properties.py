"""The records of a page against a plain implementation that makes each of them value by value."""

import math

from hypothesis import given
from hypothesis import strategies as st

from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn
from gpu_telemetry.clock import from_milliseconds
from gpu_telemetry.fields import (
    COUNTER_SENTINELS,
    FIELD_BY_DCGM_NAME,
    SENTINELS,
    Behaviour,
    ValueType,
)
from gpu_telemetry.records import GpuRecord, LabelledValue, Rejected, ScrapeRecord, Workload, decode, encode

OTHERS = ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "DCGM_EXP_XID_ERRORS_COUNT", "DCGM_FI_DEV_FB_PERCENT")
NAMES = (*FIELD_BY_DCGM_NAME, *OTHERS)
ATTRIBUTES = (
    "",
    ',namespace="ml",pod="train-0",container="main"',
    ',pod_namespace="ml",pod_name="train-1",container_name="main"',
    ',hpc_job="4711"',
    ',namespace="",pod="",container=""',
    ',pod="caf\\"é 100%"',
)

good = st.one_of(st.integers(0, 100).map(str), st.integers(0, 10**9).map(lambda number: f"{number / 7:.6f}"))
tokens = st.one_of(
    good,
    good,
    good,
    st.integers(0, 2**64).map(str),
    st.sampled_from((
        "2147483632", "2147483635", "9223372036854775794", "140737488355328.000000", "4294967295", "808334905",
        "127622", "5.000000", "-1", "-51", "0.5", "NaN", "+Inf", "-Inf", "1e3", "1e-7", "007", "+5",
        "ERROR - FAILED TO CONVERT TO STRING", "9007199254740991", "9007199254740992", "9007199254740993", "16777217",
        "0", "-0", "1e308",
    )),
)  # fmt: skip


@st.composite
def nodes(draw):
    """The rows that the node's fields have: (identity, attributes) each, the same for all fields."""
    rows = []
    for index in range(draw(st.integers(1, 3))):
        instances = draw(st.sampled_from((("",), ("",), ("1", "2"), ("", "7"))))
        for instance in instances:
            mig = f',GPU_I_PROFILE="1g.10gb",GPU_I_ID="{instance}"' if instance else ""
            identity = (
                f'gpu="{index}",UUID="GPU-{index}",pci_bus_id="0000:0{index}",device="nvidia{index}",'
                f'modelName="NVIDIA H100 80GB HBM3"{mig},Hostname="node-1",DCGM_FI_DRIVER_VERSION="550.54"'
            )
            rows.append((identity, draw(st.lists(st.sampled_from(ATTRIBUTES), min_size=1, max_size=2, unique=True))))
    return rows


@st.composite
def histories(draw):
    rows = draw(nodes())
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True))
    names = [*names, *draw(st.sampled_from(((), ("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"))))]
    absent = draw(st.sets(st.tuples(st.sampled_from(names), st.integers(0, 5)), max_size=3))
    values = draw(st.sampled_from((good, good, tokens)))
    strange = draw(st.sets(st.tuples(st.sampled_from(names), st.integers(0, 5)), max_size=2))
    history = []
    for _ in range(draw(st.integers(1, 4))):
        blocks = []
        for name in draw(st.permutations(sorted(set(names)))):
            kind = "counter" if name.endswith(("TOTAL", "COUNT")) else "gauge"
            block = f"# HELP {name} Text.\n# TYPE {name} {kind}\n"
            for number, (identity, attributes) in enumerate(rows):
                if (name, number) in absent:
                    continue
                token = draw(tokens if (name, number) in strange else values)
                # Rows of workloads usually repeat the GPU's value; some tell what each has of it.
                by_row = draw(st.booleans())
                for xid in ("31", "43") if name == "DCGM_EXP_XID_ERRORS_COUNT" else ("",):
                    own = f',window_size_in_ms="300000",xid="{xid}"' if xid else ""
                    for attribute in attributes:
                        block += f"{name}{{{identity}{own}{attribute}}} {draw(tokens) if by_row else token}\n"
            blocks.append(block)
        history.append("".join(blocks))
    return history


def workload_of(labels):
    found = Workload(
        namespace=labels.get("namespace") or labels.get("pod_namespace") or None,
        pod=labels.get("pod") or labels.get("pod_name") or None,
        container=labels.get("container") or labels.get("container_name") or None,
        job=labels.get("hpc_job") or None,
    )
    return None if found == Workload() else found


def judged(name, kind, token):
    """The value, or why it is not believed."""
    field = FIELD_BY_DCGM_NAME.get(name)
    value = float(token)
    if not math.isfinite(value):
        return Rejected(token, "not_finite")
    counter = field.behaviour is Behaviour.COUNTER if field else kind == "counter"
    if value in (COUNTER_SENTINELS if counter else SENTINELS):
        return Rejected(token, "sentinel")
    if field is None:
        return value
    number = value / (1 / field.multiply_by)
    if field.type is ValueType.INTEGER:
        if number != int(number):
            return Rejected(token, "not_integer")
        number = int(token) if token.isdigit() else int(number)
    return number if field.low <= number <= field.high else Rejected(token, "out_of_range")


def plainly(page, turn):
    """Every GPU record of a page, made value by value in the page's order."""
    made = {}
    for layout, block_tokens in page.blocks:
        for name, label_set, token in zip(layout.names, layout.label_sets, block_tokens, strict=True):
            labels = label_set.labels
            record = made.setdefault(
                (labels["UUID"], labels.get("GPU_I_ID")),
                {"labels": labels, "workloads": set(), "plain": {}, "values": {}, "fields": {}, "rejected": {}},
            )
            workload = workload_of(labels)
            if workload:
                record["workloads"].add(workload)
            own = {key: labels[key] for key in ("window_size_in_ms", "xid") if key in labels}
            value = judged(name, layout.family.type, token.partition(" ")[0])
            if own:
                record["fields"].setdefault(name, []).append((own, value))
            else:
                record["plain"].setdefault(name, []).append((workload, value))
    refused = {}
    for name, label_set, token in page.bad_values:
        labels = label_set.labels
        refused.setdefault((labels["UUID"], labels.get("GPU_I_ID")), []).append((name, labels, token))
    for key, record in made.items():
        choose(record, refused.get(key, []))
    return sorted((assembled(record, turn) for record in made.values()), key=order)


def choose(record, refused):
    """Of the rows of a field that differ by workload alone take the one that tells it; name the refused rows."""
    own_refused = {name for name, labels, _ in refused if "xid" not in labels and workload_of(labels) is None}
    for name, rows in record["plain"].items():
        of_gpu = [value for workload, value in rows if workload is None]
        chosen = of_gpu or ([] if name in own_refused else [value for _, value in rows])
        if chosen:
            record["fields" if name in OTHERS else "values"].setdefault(name, []).append(({}, chosen[0]))
    told = {our_name(name) for name in record["values"]}
    for name, labels, token in refused:
        ours = name if "xid" in labels or our_name(name) in told else our_name(name)
        record["rejected"][ours] = Rejected(token, "unconvertible")


def our_name(name):
    return FIELD_BY_DCGM_NAME[name].name if name in FIELD_BY_DCGM_NAME else name


def assembled(record, turn):
    labels, rejected, values, fields = record["labels"], record["rejected"], {}, {}
    older = "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"
    if older in record["values"] and "DCGM_FI_DEV_CLOCKS_EVENT_REASONS" in record["values"]:
        [(_, value), *_] = record["values"].pop(older)
        record["fields"][older] = [({}, judged_again(value))]
    for name, [(_, value), *_] in record["values"].items():
        (rejected if isinstance(value, Rejected) else values)[our_name(name)] = value
    for name, rows in record["fields"].items():
        kept = {}
        for own, value in rows:
            kept.setdefault(tuple(own.items()), (own, value))
        for own, value in kept.values():
            if isinstance(value, Rejected):
                rejected[name] = value
            elif own:
                fields.setdefault(name, []).append(LabelledValue(own, float(value)))
            else:
                fields[name] = float(value)
    derive(values, rejected)
    return GpuRecord(
        schema_version=1,
        node_id=turn.node_id,
        bridge_id=turn.bridge_id,
        boot_id=turn.boot_id,
        seq=turn.seq,
        collected_at=from_milliseconds(turn.collected_at_ms),
        gpu_index=int(labels["gpu"]),
        gpu_uuid=labels["UUID"],
        hostname=labels["Hostname"],
        mig_instance=labels.get("GPU_I_ID"),
        mig_profile=labels.get("GPU_I_PROFILE"),
        model=labels["modelName"],
        pci_bus_id=labels["pci_bus_id"],
        driver_version=labels["DCGM_FI_DRIVER_VERSION"],
        workloads=sorted(record["workloads"], key=repr),
        fields=fields,
        rejected=rejected,
        **values,
    )


def derive(values, rejected):
    used, free = values.get("memory_used_mib"), values.get("memory_free_mib")
    if used is None or free is None or used + free == 0:
        return
    values["memory_used_percent"] = 100 * used / (used + free)
    total = used + free + values.get("memory_reserved_mib", 0)
    if "memory_total_mib" not in values and "memory_reserved_mib" not in rejected:
        if total > 16 * 1024**2:
            rejected["memory_total_mib"] = Rejected(str(total), "out_of_range")
        else:
            values["memory_total_mib"] = total


def judged_again(value):
    """What the older of two names gives when it stands by itself: no row of the field table judges it."""
    token = value.value if isinstance(value, Rejected) else str(value)
    return judged("unknown", "gauge", token)


def order(record):
    return record.gpu_index, record.mig_instance or ""


def normal(record):
    """A record with what has no order in order."""
    changes = {
        "workloads": sorted(record.workloads, key=repr),
        "fields": {
            name: sorted(value, key=repr) if isinstance(value, list) else value for name, value in record.fields.items()
        },
    }
    return decode(encode(type(record)(**{name: getattr(record, name) for name in record.__struct_fields__} | changes)))


def turn_of(number):
    return Turn(
        node_id="node-1",
        bridge_id="bridge-1",
        boot_id="boot-1",
        seq=number,
        collected_at_ms=1_700_000_000_000 + number,
        interval_ms=30_000,
    )


@given(histories())
def test_every_record_is_what_a_plain_implementation_makes_of_the_page(history):
    parser, builder = Exposition().parser(), RecordBuilder()
    for number, text in enumerate(history, start=1):
        page, turn = parser.parse(text.encode()), turn_of(number)
        scrape = builder.build(page, turn)
        *records, closing = [decode(message) for message in scrape.messages]
        expected = plainly(page, turn)
        assert [normal(record) for record in sorted(records, key=order)] == [normal(record) for record in expected]
        assert isinstance(closing, ScrapeRecord)
        assert closing.gpu_records == scrape.gpu_records == len(expected)
        # In no order: those that are seen on refused lines alone come last.
        assert sorted(closing.gpu_uuids) == sorted(
            {record.gpu_uuid for record in expected} | {labels.labels["UUID"] for _, labels, _ in page.bad_values}
        )
        counted = {}
        for record in expected:
            for name, rejected in record.rejected.items():
                counted[name, rejected.reason] = counted.get((name, rejected.reason), 0) + 1
        assert set(scrape.rejected) >= set(counted)
