"""What a list of targets says, and what is said of a list that is wrong."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter_bridge.targets import (
    Access,
    Target,
    TargetError,
    offset_of,
    page_shard_of,
    read_secret,
    read_targets,
    shard_of,
)


def read(groups):
    return read_targets(json.dumps(groups).encode(), "targets.json")


def test_a_target_without_labels_is_named_by_its_host():
    (target,) = read([{"targets": ["10.0.0.7:9400"]}])
    assert target == Target("10.0.0.7", "http://10.0.0.7:9400/metrics", "10.0.0.7:9400")


def test_yaml_and_json_say_the_same():
    text = b"- targets: ['gpu-1:9400']\n  labels:\n    node_id: node-1\n    datacenter: us-west-1\n"
    (from_yaml,) = read_targets(text, "targets.yml")
    (from_json,) = read([{"targets": ["gpu-1:9400"], "labels": {"node_id": "node-1", "datacenter": "us-west-1"}}])
    assert from_yaml == from_json
    assert (from_yaml.node_id, from_yaml.datacenter) == ("node-1", "us-west-1")


def test_the_instance_label_wins_over_the_address():
    (target,) = read([{"targets": ["127.0.0.1:9400"], "labels": {"instance": "node-1:9400"}}])
    assert target.instance == "node-1:9400"
    assert target.url == "http://127.0.0.1:9400/metrics"


def test_an_ipv6_address_keeps_its_brackets_in_the_url_and_loses_them_in_the_name():
    (target,) = read([{"targets": ["[fd00::7]:9400"]}])
    assert (target.node_id, target.url) == ("fd00::7", "http://[fd00::7]:9400/metrics")


def test_reserved_labels_say_how_the_exporter_is_reached_and_stay_out_of_the_series():
    (target,) = read(
        [
            {
                "targets": ["gpu-1:9400"],
                "labels": {
                    "__scheme__": "https",
                    "__metrics_path__": "/dcgm/metrics",
                    "__param_format": "text 1",
                    "__scrape_timeout__": "1m500ms",
                    "__tls_ca_file__": "/ca.pem",
                    "__tls_cert_file__": "/me.pem",
                    "__tls_key_file__": "/me.key",
                    "__tls_server_name__": "exporter",
                    "__basic_auth_username__": "scraper",
                    "__basic_auth_password_file__": "/password",
                    "__meta_kubernetes_node": "ignored",
                    "rack": "r7",
                },
            }
        ]
    )
    assert target.url == "https://gpu-1:9400/dcgm/metrics?format=text+1"
    assert target.timeout_seconds == 60.5
    assert target.access == Access("/ca.pem", "/me.pem", "/me.key", "exporter", "scraper", "/password")
    assert target.labels == (("rack", "r7"),)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"targets": []}, "targets.json: expected a list of target groups, got a mapping"),
        (None, "targets.json: expected a list of target groups, got nothing; a fleet without nodes is []"),
        (["gpu-1:9400"], "group 1: expected a mapping with targets and labels, got 'gpu-1:9400'"),
        ([{"targets": []}, {"labels": {}}], "group 2: targets: expected a list of HOST:PORT, got nothing"),
        ([{"targets": [], "label": {}}], "group 1: label: unknown key; expected targets and labels"),
        ([{"targets": ["gpu-1"]}], "group 1: targets: expected HOST:PORT, got 'gpu-1'"),
        ([{"targets": [9400]}], "group 1: targets: expected HOST:PORT, got 9400"),
        ([{"targets": ["gpu-1/metrics:9400"]}], "group 1: targets: expected HOST:PORT, got 'gpu-1/metrics:9400'"),
        (
            [{"targets": ["gpü-1:9400"]}],
            "targets: expected a host in ASCII (its xn-- form) and a port, got 'gpü-1:9400'",
        ),
        ([{"targets": ["a:\u0663"]}], "targets: expected a host in ASCII (its xn-- form) and a port, got 'a:\u0663'"),
        ([{"targets": ["a:1"], "labels": {"__tls_server_name__": "gpü"}}], "__tls_server_name__: expected ASCII"),
        ([{"targets": ["a:1"], "labels": {"rack": 7}}], "labels: rack: expected a string, got 7; put it in quotes"),
        ([{"targets": ["a:1"], "labels": {"a-b": ""}}], "labels: a-b: expected a name of letters, digits and"),
        ([{"targets": ["a:1"], "labels": {"node_id": ""}}], "labels: node_id: expected 1 to 512 characters"),
        ([{"targets": ["a:1"], "labels": {"__scheme__": "ftp"}}], "__scheme__: expected http or https, got 'ftp'"),
        ([{"targets": ["a:1"], "labels": {"__metrics_path__": "m"}}], "expected a path that starts with /, got 'm'"),
        ([{"targets": ["a:1"], "labels": {"__scrape_timeout__": "soon"}}], "expected a duration such as 5s or 500ms"),
        ([{"targets": ["a:1"], "labels": {"__scrape_timeout__": "25h"}}], "500ms, up to 24h, got '25h'"),
        ([{"targets": ["a:1"], "labels": {"__scrape_timeout__": "9" * 400 + "s"}}], "500ms, up to 24h, got '999"),
        ([{"targets": ["a:1"], "labels": {"__scrape_interval__": "5s"}}], "set BRIDGE_INTERVAL_SECONDS"),
        ([{"targets": ["a:1"], "labels": {"__tls_ca__": "x"}}], "labels: __tls_ca__: unknown; expected one of"),
        ([{"targets": ["a:1"], "labels": {"__tls_cert_file__": "x"}}], "__tls_key_file__ go together"),
        ([{"targets": ["a:1"], "labels": {"__basic_auth_username__": "x"}}], "password_file__ go together"),
        (
            [{"targets": ["a:1"], "labels": {"__bearer_token__": "s3cret"}}],
            "a secret may not stand here: give __bearer_token_file__ with the name of a file",
        ),
    ],
)
def test_an_error_names_the_list_the_group_and_the_key(groups, expected):
    with pytest.raises(TargetError) as caught:
        read(groups)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("targets.json")
    assert "s3cret" not in str(caught.value)


def test_two_targets_that_claim_one_node_are_an_error_that_names_both():
    groups = [{"targets": [address], "labels": {"node_id": "node-1"}} for address in ("a:1", "b:1")]
    with pytest.raises(TargetError) as caught:
        read(groups)
    assert "'node-1' is claimed by two targets, http://a:1/metrics and http://b:1/metrics" in str(caught.value)


def test_a_group_with_a_node_id_and_two_addresses_is_an_error_that_names_both():
    with pytest.raises(TargetError, match="'node-1' is claimed by 2 targets, a:1 and b:1"):
        read([{"targets": ["a:1", "b:1"], "labels": {"node_id": "node-1"}}])


def test_broken_yaml_is_an_error_with_line_and_column():
    with pytest.raises(TargetError, match=r"targets.yml: expected JSON or YAML: .* at line 3, column"):
        read_targets(b"- targets: [a:1]\n  labels: {", "targets.yml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'[{"targets": ["a:1"],\n"labels": {"rack": "Z\xfcrich"}}]',
            "in UTF-8: invalid leading UTF-8 octet at line 2",
        ),
        (b"- targets: ['a:1']\n  labels: {rack: Z\xfcrich}\n", "in UTF-8: invalid leading UTF-8 octet at line 2"),
        (b"[" * 100_000, "over 100 lists or mappings in one another at line 1, column 101"),
        (b'{"a":' * 100_000, "over 100 lists or mappings in one another at line 1, column"),
        (b"- " * 100_000 + b"a", "over 100 lists or mappings in one another at line 1, column 201"),
        (b"- targets:\n  - 2026-13-45\n", "this is no timestamp at line 2, column 5"),
        (b"- targets: [!!bool maybe]\n", "this is no bool at line 1, column 13"),
        (b"- targets: [!!int '']\n", "this is no int at line 1, column 13"),
        (b"- 0x" + b"f" * 10_000, "a number of over 64 bits at line 1, column 3"),
    ],
)
def test_a_text_that_is_no_list_says_what_was_expected_and_where(content, expected):
    with pytest.raises(TargetError) as caught:
        read_targets(content, "targets.yml")
    assert str(caught.value).startswith("targets.yml: expected JSON or YAML")
    assert expected in str(caught.value)


PIECES = [
    b'- targets: ["a:1"]\n', b"  labels:\n", b"    node_id: x\n", b"[", b"]", b"{", b"}", b'"', b"'", b": ", b", ",
    b"\n", b"- ", b"? ", b"!!int ", b"!!float ", b"!!bool ", b"!!timestamp ", b"!!binary ", b"!!set ", b"!!omap ",
    b"&a ", b"*a", b"<<", b"1" * 5000, b"0x" + b"f" * 5000, b"1:2", b"2026-99-01", b"\xfc", b"\xff\xfe", b"\x00",
    b"\\ud800", b"a", b"%YAML 1.1",
]  # fmt: skip


@given(st.one_of(st.binary(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)))
def test_whatever_a_text_holds_is_a_list_or_one_kind_of_error(content):
    with suppress(TargetError):
        read_targets(content, "targets.yml")


def test_an_empty_list_is_a_fleet_without_nodes():
    assert read([]) == []


def test_shards_and_offsets_are_even_and_independent_of_each_other():
    nodes = [f"node-{number}" for number in range(4000)]
    ours = [node for node in nodes if shard_of(node, 4) == 1]
    assert 900 < len(ours) < 1100
    assert all(0 <= offset_of(node, 30) < 30 for node in ours)
    assert 400 < sum(offset_of(node, 30) < 15 for node in ours) < 600
    assert 150 < sum(page_shard_of(node, 4) == 1 for node in ours) < 350


def test_offsets_and_shards_stay_what_they_are_from_release_to_release():
    assert shard_of("node-1", 1000) == 765
    assert round(offset_of("node-1", 30), 3) == 10.903


def test_a_secret_is_read_without_its_line_end(tmp_path):
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    assert read_secret(str(file)) == "s3cret"


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff\xfe"])
def test_a_file_that_holds_no_secret_is_named_and_not_shown(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="token: expected") as caught:
        read_secret(str(file))
    assert "two" not in str(caught.value)
