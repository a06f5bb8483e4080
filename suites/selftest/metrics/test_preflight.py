"""A preflight's figures by device, from the records of its processes."""

import pytest

from conformance.metrics.preflight import by_device, devices, figures

RECORDS = [
    {"kind": "process", "host": "n1", "local_rank": 0},
    {"kind": "gemm", "name": "square", "setting": "alone", "tflops": 700.0},
    {"kind": "gemm", "name": "head", "setting": "alone", "tflops": 1.0},
    {"kind": "copy", "setting": "together", "gb_per_s": "nan"},
    {"kind": "capacity", "held_gib": 3.0, "needed_gib": 2.0},
]
TASKS = {
    "device": [{"rank": 1, "records": RECORDS}, {"rank": 0, "records": []}],
    "collectives": [
        {
            "rank": rank,
            "records": [
                {"kind": "arrival", "late_seconds": 0.002 * rank},
                {"kind": "link", "sender": 1 - rank, "receiver": rank, "gb_per_s": 10.0 + rank},
                {"kind": "bandwidth", "operation": "all_reduce", "bytes": 1024, "busbw_gb_per_s": 5.0 + rank},
            ],
        }
        for rank in (0, 1)
    ],
}


def test_each_rank_has_a_row_of_what_it_measured_and_nothing_else():
    first, second = by_device(TASKS)
    assert (first["rank"], first["host"], first["gemm_alone_tflops"], first["late_ms"]) == (0, "?", None, 0.0)
    assert (second["rank"], second["host"], second["gemm_alone_tflops"]) == (1, "n1", 700.0)
    assert (second["held_gib"], second["needed_gib"]) == (3.0, 2.0)
    assert second["late_ms"] == pytest.approx(2.0)
    # Not a number is no figure, and the head's product is not the square one.
    assert second["copy_together_gb_per_s"] is None
    assert second["gemm_together_tflops"] is None


def test_links_are_told_by_sender_and_bandwidth_as_rank_0_saw_it():
    found = figures(TASKS)
    assert found["links"] == [
        {"sender": 0, "receiver": 1, "gb_per_s": 11.0},
        {"sender": 1, "receiver": 0, "gb_per_s": 10.0},
    ]
    assert found["bus"] == [{"collective": "all_reduce", "bytes": 1024, "gb_per_s": 5.0}]


def test_nothing_measured_gives_no_figure():
    assert figures({}) == {"by_device": [], "bus": [], "links": []}


def test_each_device_is_told_with_its_host_if_it_tells_vendor_and_model():
    device = {"kind": "identity", "vendor": "NVIDIA", "model": "H200", "memory": 141}
    records = [device, {"kind": "identity", "vendor": "NVIDIA"}, {"kind": "host", "host": "n1"}]
    told = {"plugin": "nvidia", "vendor": "NVIDIA", "model": "H200", "memory": "141"}
    found = devices({"host": [{"records": records}, {"records": [device]}]}, "nvidia")
    assert found == [{"host": "n1", **told}, {"host": "", **told}]
