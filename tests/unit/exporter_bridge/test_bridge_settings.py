"""The bridge's settings, and what is said of wrong ones."""

import pytest

from exporter_bridge.settings import BridgeSettings, split_shard
from gpu_telemetry.settings import SettingsError


@pytest.mark.parametrize(("interval", "expected"), [(30, 10), (5, 5)])
def test_a_scrape_may_take_ten_seconds_or_one_interval(interval, expected):
    assert BridgeSettings(interval_seconds=interval).scrape_timeout_seconds == expected


def test_a_time_out_that_is_given_stands():
    assert BridgeSettings(interval_seconds=30, timeout_seconds=2).scrape_timeout_seconds == 2


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("BRIDGE_INTERVAL_SECONDS", "often", "BRIDGE_INTERVAL_SECONDS: Input should be a valid number"),
        ("BRIDGE_SHARD", "2/2", "BRIDGE_SHARD: expected INDEX/COUNT with INDEX from 0 and below COUNT"),
        ("BRIDGE_LISTEN", "9500", "BRIDGE_LISTEN: expected HOST:PORT, got '9500'"),
        ("BRIDGE_HTTP_SD_URL", "emulator:9400", "BRIDGE_HTTP_SD_URL: expected an http:// or https:// URL"),
        ("BRIDGE_HTTP_SD_URL", "http://me:s3cret@sd/", "user and password may not stand in it"),
        ("BRIDGE_TIMEOUT_SECONDS", "31", "BRIDGE_TIMEOUT_SECONDS may not be longer than BRIDGE_INTERVAL_SECONDS"),
        ("BRIDGE_QUEUE_SCRAPES", "0", "BRIDGE_QUEUE_SCRAPES: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_told_by_the_variables_name(monkeypatch, variable, value, expected):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        BridgeSettings.load()
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_shard_is_an_index_below_its_count():
    assert split_shard("3/16") == (3, 16)
    for text in ("16/16", "-1/2", "0/0", "1", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="expected INDEX/COUNT"):
            split_shard(text)
