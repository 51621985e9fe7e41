"""The emulator's settings: documented, validated, each error with its variable's name."""

import pytest

from emulator.attribution import Attribution
from emulator.dialects import DIALECTS
from emulator.entities import ENTITIES
from emulator.families import OPTIONAL_GROUPS
from emulator.models import MODELS
from emulator.settings import EmulatorSettings
from gpu_telemetry.settings import SettingsError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in EmulatorSettings.model_fields:
        monkeypatch.delenv(EmulatorSettings.variable(name), raising=False)


def test_the_default_fleet_is_two_nodes_of_eight_h100s_in_us_west_1():
    settings = EmulatorSettings.load()
    assert (settings.listen, settings.nodes, settings.gpus) == ("127.0.0.1:9400", 2, 8)
    assert [settings.model_of(number) for number in range(2)] == ["h100", "h100"]
    assert [settings.datacenter_of(number) for number in range(2)] == ["us-west-1", "us-west-1"]


def test_every_setting_is_described_and_lists_all_that_it_accepts():
    fields = EmulatorSettings.model_fields
    assert all(field.description for field in fields.values())
    for name, accepted in (
        ("dialect", DIALECTS),
        ("models", MODELS),
        ("optional_fields", OPTIONAL_GROUPS),
        ("attribution", Attribution),
        ("entities", ENTITIES),
    ):
        assert all(word in (fields[name].description or "") for word in accepted)


def test_settings_come_from_the_environment_and_flags_win(monkeypatch):
    monkeypatch.setenv("EMULATOR_NODES", "5")
    monkeypatch.setenv("EMULATOR_MODELS", "h100, t4")
    monkeypatch.setenv("EMULATOR_DATACENTERS", "a,b")
    settings = EmulatorSettings.load(gpus=4, seed=None)
    assert (settings.nodes, settings.gpus, settings.seed) == (5, 4, 1)
    assert [settings.model_of(number) for number in range(3)] == ["h100", "t4", "h100"]
    assert [settings.datacenter_of(number) for number in range(5)] == ["a", "a", "b", "b", "a"]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("EMULATOR_LISTEN", "9400", "expected HOST:PORT"),
        ("EMULATOR_NODES", "0", "greater than or equal to 1"),
        ("EMULATOR_GPUS", "17", "less than or equal to 16"),
        ("EMULATOR_SEED", "-1", "greater than or equal to 0"),
        ("EMULATOR_DIALECT", "2.0", "expected one of 1.7, 2.4, 3.3"),
        ("EMULATOR_MODELS", "h100,voodoo", "got 'voodoo'"),
        ("EMULATOR_MODELS", " ,", "at least one of"),
        ("EMULATOR_DATACENTERS", "", "at least one datacenter"),
        ("EMULATOR_HOSTNAME", "mine", "'node', 'localhost' or 'none'"),
        ("EMULATOR_ATTRIBUTION", "vm", "'none', 'pods', 'time_slicing', 'vgpu' or 'hpc_jobs'"),
        ("EMULATOR_ENTITIES", "gpu", "expected some of nvswitch, cpu, cpu_core"),
        ("EMULATOR_COLLECTION_SECONDS", "-1", "greater than or equal to 0"),
        ("EMULATOR_MIG_NODES", "3", "at most the 2 of EMULATOR_NODES"),
        ("EMULATOR_OPTIONAL_FIELDS", "ecc,rgb", "got 'rgb'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as caught:
        EmulatorSettings.load()
    assert said in str(caught.value)


def test_a_model_without_mig_cannot_be_split(monkeypatch):
    monkeypatch.setenv("EMULATOR_MODELS", "h100,t4")
    with pytest.raises(SettingsError, match="node-2 has model t4, which has no MIG"):
        EmulatorSettings.load(mig_nodes=1)


@pytest.mark.parametrize("dialect", ["1.7", "mixed"])
def test_an_exporter_that_knows_no_mig_cannot_have_split_gpus(dialect):
    with pytest.raises(SettingsError, match=r"node-1 has an exporter of release 1\.7, which knows no MIG"):
        EmulatorSettings.load(nodes=1, mig_nodes=1, dialect=dialect)
