"""The field table is one table: what leans on it agrees with it."""

import types
import typing

import pytest

from gpu_telemetry.fields import (
    COUNTER_SENTINELS,
    FIELD_BY_DCGM_NAME,
    FIELDS,
    LARGEST_EXACT_INTEGER,
    SENTINELS,
    Behaviour,
    Field,
    ValueType,
)
from gpu_telemetry.records import GpuRecord


def test_names_and_dcgm_names_are_unique():
    assert len({field.name for field in FIELDS}) == len(FIELDS)
    assert len(FIELD_BY_DCGM_NAME) == sum(len(field.dcgm) for field in FIELDS)


def test_the_record_has_each_field_in_its_type_and_order():
    hints = typing.get_type_hints(GpuRecord)
    measured = [name for name in GpuRecord.__struct_fields__ if name in {field.name for field in FIELDS}]
    assert measured == [field.name for field in FIELDS]
    for field in FIELDS:
        expected = int if field.type is ValueType.INTEGER else float
        assert hints[field.name] == expected | types.NoneType, field.name


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_range_is_a_range(field: Field):
    assert field.low < field.high


def test_the_wide_sentinels_lie_outside_every_range_and_the_narrow_ones_outside_most():
    reaching = {
        field.name
        for field in FIELDS
        if field.behaviour is Behaviour.GAUGE
        and any(field.low <= value * field.multiply_by <= field.high for value in SENTINELS)
    }
    # On these only the list of sentinels tells "no value" from a value.
    assert reaching == {"clock_throttle_reasons", "pcie_tx_bytes_per_second", "pcie_rx_bytes_per_second"}
    for field in FIELDS:
        wide = {value * field.multiply_by for value in COUNTER_SENTINELS if value > 2**60}
        assert not any(field.low <= value <= field.high for value in wide), field.name


def test_integers_stay_exact_in_json():
    assert all(field.high <= LARGEST_EXACT_INTEGER for field in FIELDS if field.type is ValueType.INTEGER)


def test_the_absurd_utilisations_that_exporters_print_are_out_of_range():
    utilisation = FIELD_BY_DCGM_NAME["DCGM_FI_DEV_GPU_UTIL"]
    for absurd in (808334905, 127622, 2619):
        assert not utilisation.low <= absurd <= utilisation.high
