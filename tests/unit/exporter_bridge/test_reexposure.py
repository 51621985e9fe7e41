"""Pages of many nodes as one page."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter_bridge.exposition import Exposition
from exporter_bridge.reexposure import Conflicts, Exposed, exporters_up, fleet_page
from exporter_bridge.targets import Target

TARGET = Target("node-1", "http://10.0.0.1:9400/metrics", "10.0.0.1:9400", "us-west-1")


@pytest.fixture
def expose():
    """`expose(text, target)`: a node with this page; without text, one whose last scrape failed."""
    exposition = Exposition()

    def make(text, target=TARGET):
        if text is None:
            return Exposed(target, None)
        page = exposition.parser().parse(text.encode())
        page.compact()
        return Exposed(target, page)

    return make


def written(*nodes, conflicts=None):
    return "".join(fleet_page(nodes, conflicts or Conflicts()))


def samples(text):
    """Every sample line without `gpu_exporter_up`."""
    return [line for line in text.splitlines() if not line.startswith(("#", "gpu_exporter_up"))]


def test_a_sample_keeps_its_name_labels_and_value_and_gains_its_nodes_labels(expose):
    text = written(expose('DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1"} 45.000000\n'))
    (sample,) = samples(text)
    added = 'node_id="node-1",instance="10.0.0.1:9400",datacenter="us-west-1"'
    assert sample == f'DCGM_FI_DEV_GPU_TEMP{{gpu="0",UUID="GPU-1",{added}}} 45.000000'


@pytest.mark.parametrize("line", ["bare 1", "bare{} 1"])
def test_a_sample_without_labels_gets_the_nodes(line, expose):
    text = written(expose(line + "\n", Target("n", "u", "i")))
    assert samples(text) == ['bare{node_id="n",instance="i"} 1']


def test_a_comma_after_the_last_label_is_not_doubled(expose):
    assert samples(written(expose('x{a="1",} 1\n', Target("n", "u", "i")))) == ['x{a="1",node_id="n",instance="i"} 1']


def test_a_timestamp_and_odd_values_stay_as_they_came(expose):
    text = written(expose("a 1.5e3 1700000000000\nb NaN\nc +Inf\n", Target("n", "u", "i")))
    assert [line.partition("} ")[2] for line in samples(text)] == ["1.5e3 1700000000000", "NaN", "+Inf"]


def test_a_page_label_that_the_node_brings_too_becomes_exported(expose):
    target = Target("n", "u", "i", labels=(("rack", "r1"),))
    text = written(expose('x{instance="theirs",rack="r9",exported_rack="r8",pod="p"} 1\n', target))
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "x"]
    assert family.samples[0].labels == {
        "exported_instance": "theirs",
        "exported_exported_rack": "r9",
        "exported_rack": "r8",
        "pod": "p",
        "node_id": "n",
        "instance": "i",
        "rack": "r1",
    }


def test_a_page_label_that_the_node_does_not_bring_stays(expose):
    line = 'x{datacenter="theirs"} 1'
    assert samples(written(expose(line + "\n", Target("n", "u", "i")))) == [
        'x{datacenter="theirs",node_id="n",instance="i"} 1'
    ]
    target = Target("n", "u", "i", datacenter="ours")
    assert samples(written(expose(line + "\n", target))) == [
        'x{exported_datacenter="theirs",node_id="n",instance="i",datacenter="ours"} 1'
    ]


def test_a_value_that_only_looks_like_a_label_changes_nothing(expose):
    line = 'x{pod="a, instance=1 node_id"} 1'
    (sample,) = samples(written(expose(line + "\n", Target("n", "u", "i"))))
    assert sample == 'x{pod="a, instance=1 node_id",node_id="n",instance="i"} 1'


def test_quotes_and_backslashes_survive_on_both_sides(expose):
    target = Target('n"1', "u", "back\\slash\nline")
    text = written(expose('x{pod="a\\"b\\\\c\\nd",instance="q\\"r"} 1\n', target))
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "x"]
    assert family.samples[0].labels == {
        "pod": 'a"b\\c\nd',
        "exported_instance": 'q"r',
        "node_id": 'n"1',
        "instance": "back\\slash\nline",
    }


def test_each_familys_help_and_type_stand_once_over_all_nodes_and_blocks(expose):
    page = (
        '# HELP T temperature\n# TYPE T gauge\nT{gpu="0"} 1\n'
        '# HELP P power\n# TYPE P gauge\nP{gpu="0"} 2\n'
        '# HELP T temperature\n# TYPE T gauge\nT{nvlink="0"} 3\n'
    )
    text = written(expose(page), expose(page, Target("node-2", "u", "i")))
    for line in ("# HELP T temperature", "# TYPE T gauge", "# HELP P power", "# TYPE P gauge"):
        assert text.splitlines().count(line) == 1
    names = [line.partition("{")[0] for line in samples(text)]
    assert names == ["P", "P", "T", "T", "T", "T"]


def test_where_nodes_differ_the_first_nodes_type_stands_and_it_is_counted(expose):
    conflicts = Conflicts()
    one = expose("# HELP T old words\n# TYPE T gauge\nT 1\nU 1\n")
    two = expose("# HELP T new words\n# TYPE T counter\nT 2\nU 2\n", Target("node-2", "u", "i"))
    text = written(one, two, conflicts=conflicts)
    assert "# TYPE T gauge" in text
    assert "new words" not in text
    assert conflicts.families == {"T"}
    assert len(samples(text)) == 4


def test_a_failed_node_is_absent_and_its_up_is_0(expose):
    text = written(expose("T 1\n"), expose(None, Target("node-2", "u", "10.0.0.2:9400")))
    assert 'gpu_exporter_up{node_id="node-1",instance="10.0.0.1:9400",datacenter="us-west-1"} 1\n' in text
    assert 'gpu_exporter_up{node_id="node-2",instance="10.0.0.2:9400"} 0\n' in text
    assert len(samples(text)) == 1


def test_histograms_keep_their_suffixes(expose):
    page = '# TYPE h histogram\nh_bucket{le="1"} 1\nh_bucket{le="+Inf"} 2\nh_sum 3\nh_count 2\n'
    assert [s.partition("{")[0] for s in samples(written(expose(page)))] == ["h_bucket", "h_bucket", "h_sum", "h_count"]


def test_without_nodes_the_page_holds_the_ups_heading_alone():
    assert [line[:2] for line in written().splitlines()] == ["# ", "# "]


def test_a_large_fleet_comes_in_small_slices(expose):
    page = "".join(f'F{family}{{gpu="{gpu}"}} 1\n' for family in range(20) for gpu in range(8))
    nodes = [expose(page, Target(f"node-{number}", "u", "i")) for number in range(300)]
    slices = list(fleet_page(nodes, Conflicts()))
    assert max(map(len, slices)) < 200_000
    assert len("".join(slices).splitlines()) == 300 * 160 + 20 + 300 + 2
    assert max(len(text) for text in exporters_up(nodes)) < 200_000


def test_promtool_finds_fault_with_nothing_of_ours(expose, promtool_complaints):
    page = '# HELP T t\n# TYPE T gauge\nT{gpu="0"} 1\n'
    assert promtool_complaints(written(expose(page))) == ""
