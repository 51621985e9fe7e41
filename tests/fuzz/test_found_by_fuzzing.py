"""What damaged pages have brought to light, each as small as it could be made."""

from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn
from gpu_telemetry.records import Rejected, decode


def test_a_brace_that_was_never_opened_is_refused_also_where_a_sample_without_labels_is_known():
    parser = Exposition().parser()
    assert parser.parse(b"rpc_seconds_count 100\n").samples == 1
    page = parser.parse(b"# HELP x y\n# TYPE x gauge\nDCGM_F} 0\n")
    assert (page.samples, page.refused) == (0, {"bad_name": 1})


def test_a_value_that_is_also_told_by_a_strange_label_is_held_to_its_range_all_the_same():
    body = (
        b'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1",strange="a"} 319.757\n'
        b'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1"} 97\n'
    )
    turn = Turn(node_id="n", bridge_id="b", boot_id="b", seq=1, collected_at_ms=0, interval_ms=1000)
    record = decode(RecordBuilder().build(Exposition().parser().parse(body), turn).messages[0])
    assert record.gpu_utilization_percent is None
    assert record.rejected == {"gpu_utilization_percent": Rejected("319.757", "out_of_range")}


def test_a_bad_help_line_with_a_carriage_return_in_it_is_refused_also_before_the_label_texts_of_a_known_block():
    body = b'a{x="1"} 1\na{x="2"} 2\n# HELP \r_\n# TYPE b gauge\nb{x="1"} 3\nb{x="2"} 4\n'
    page = Exposition().parser().parse(body)
    assert ([sample.value for sample in page], page.refused) == ([1, 2, 3, 4], {"bad_metadata": 1})
