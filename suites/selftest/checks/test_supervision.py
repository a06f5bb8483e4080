"""What the supervisor saw becomes findings; a run that was not watched to its end is no pass."""

import pytest

from conformance import evidence
from conformance.checks.finding import Result, Verdict
from conformance.checks.supervision import MIN_SECONDS, even, faults, pace
from conformance.evidence import RunDirectory
from conformance.judgement import judge

FAULT = {"kind": "stall", "message": "The run stands still.", "next_step": "Look at the stacks."}


def test_no_fault_passes():
    (finding,) = faults({"faults": []})
    assert (finding.check, finding.result, finding.value, finding.limit) == ("run-faults", Result.PASS, 0, 0)


def test_each_fault_is_a_failure_in_its_own_words():
    (finding,) = faults({"faults": [FAULT]})
    assert finding.result is Result.FAIL
    assert (finding.message, finding.next_step, finding.value) == (FAULT["message"], FAULT["next_step"], "stall")


@pytest.mark.parametrize("record", [None, {}, {"faults": None}, {"faults": ["stall"]}])
def test_a_run_that_nobody_watched_is_not_green(record):
    (finding,) = faults(record)
    assert finding.result is Result.ERROR


SLOW = {"kind": "slow-rank", "message": "Rank 3 keeps the others waiting.", "next_step": "Compare the hosts."}


def test_a_rank_that_the_others_waited_for_is_reported():
    (finding,) = pace({"faults": [], "notices": [SLOW]})
    assert (finding.check, finding.result) == ("run-pace", Result.FAIL)
    assert (finding.message, finding.next_step, finding.value) == (SLOW["message"], SLOW["next_step"], "slow-rank")
    (finding,) = pace({"faults": [], "notices": []})
    assert finding.result is Result.PASS


@pytest.mark.parametrize("record", [None, {"faults": []}, {"notices": "none"}])
def test_where_nobody_looked_for_it_nothing_is_said(record):
    assert pace(record) == []


def test_a_slow_rank_decides_nothing(run):
    evidence.write_json(run, evidence.FAULTS, {"faults": [], "notices": [SLOW]})
    judgement = judge(RunDirectory(run))
    assert next(f for f in judgement.findings if f.check == "run-pace").result is Result.FAIL
    assert judgement.verdict is Verdict.REHEARSAL


HEADER = "timestamp, index, uuid, utilization.gpu [%], power.draw [W], clocks.current.sm [MHz]"


def telemetry(*clocks, samples=100, percent=99):
    rows = [
        f"2026/01/01 00:{second // 60:02}:{second % 60:02}.000, {index}, GPU-{index}, {percent} %, 650.1 W, {clock} MHz"
        for second in range(samples)
        for index, clock in enumerate(clocks)
    ]
    return "\n".join([HEADER, *rows, "2026/01/01 00:0"]).encode()


def test_devices_of_one_speed():
    finding = even({"environment/telemetry-node0.csv": [telemetry(1755, 1740, 1755)]})
    assert (finding.check, finding.result, finding.value) == ("run-clocks", Result.PASS, 1740)
    assert finding.margin == pytest.approx(1740 / finding.limit - 1)


@pytest.mark.parametrize(("clock", "result"), [(1800, Result.PASS), (1799, Result.FAIL)])
def test_nine_tenths_of_the_others_clock_are_enough(clock, result):
    assert even({"environment/telemetry-node0.csv": [telemetry(2000, clock, 2000)]}).result is result


def test_a_slow_device_is_named_with_its_node():
    files = {f"environment/telemetry-node{node}.csv": [telemetry(1755, 1200 if node else 1755)] for node in (0, 1)}
    finding = even(files)
    assert finding.result is Result.FAIL
    assert "device 1 of node 1, held 1200 MHz" in finding.message
    assert "the others 1755 MHz" in finding.message
    assert finding.margin < 0


@pytest.mark.parametrize(
    "csv",
    [
        b"",
        b"timestamp, index, utilization.cpu [%], clocks.cpu [MHz]\nx, 0, 99.0, 2000",
        telemetry(1755),
        telemetry(1755, 300, samples=MIN_SECONDS - 1),
        telemetry(1755, 300, percent=10),
        telemetry("[N/A]", "[N/A]"),
    ],
)
def test_what_does_not_tell_is_skipped(csv):
    assert even({"environment/telemetry-node0.csv": [csv]}).result is Result.SKIP


def test_a_minute_of_samples_is_enough():
    assert even({"environment/telemetry-node0.csv": [telemetry(1755, 300, samples=MIN_SECONDS)]}).result is Result.FAIL


def test_a_device_that_slowed_down_for_most_of_a_run_of_days_is_seen():
    """Telemetry keeps a row a second of the first hours, and one a minute from then on."""
    hours = range(6 * 3600)
    days = range(6 * 3600 + 59, 23 * 3600, 60)
    rows = [
        f"2026/01/01 {s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}.000, {n}, GPU-{n}, 99 %, 650.1 W, {clock} MHz"
        for seconds, slow in ((hours, 1980), (days, 1188))
        for s in seconds
        for n, clock in ((0, 1980), (1, slow))
    ]
    finding = even({"environment/telemetry-node0.csv": ["\n".join([HEADER, *rows]).encode()]})
    assert (finding.result, finding.value) == (Result.FAIL, 1188)


def test_a_device_of_another_job_is_not_held_against_the_run(run):
    csv = telemetry(1980, 1980, 1200)
    assert even({"environment/telemetry-node0.csv": [csv]}).result is Result.FAIL
    assert even({"environment/telemetry-node0.csv": [csv]}, {"GPU-0", "GPU-1"}).result is Result.PASS
    (run / "environment/telemetry-node0.csv").write_bytes(csv)

    def judged(*uuids):
        for rank, uuid in enumerate(uuids):
            record = evidence.read_json(RunDirectory(run), f"environment/rank{rank}.json")
            record["device"] = {**record["device"], "uuid": uuid}
            if uuid is None:
                del record["device"]["uuid"]
            evidence.write_json(run, f"environment/rank{rank}.json", record)
        return next(f.result for f in judge(RunDirectory(run)).findings if f.check == "run-clocks")

    assert judged("GPU-0", "GPU-1") is Result.PASS
    assert judged("GPU-0", "GPU-2") is Result.FAIL
    assert judged("GPU-0", None) is Result.FAIL  # whose the others are, nobody knows
    assert judged("GPU-0", ["GPU-1"]) is Result.FAIL


def test_telemetry_of_more_devices_than_a_node_has_is_not_counted(run):
    """However many a hostile bundle names, they take no memory."""
    csv = telemetry(*[1980] * 1025, samples=2)
    finding = even({"environment/telemetry-node3.csv": [csv]})
    assert finding.result is Result.ERROR
    assert finding.message == (
        "environment/telemetry-node3.csv is not counted. The telemetry names more than 1024 devices; "
        "no node has as many."
    )
    (run / "environment/telemetry-node0.csv").write_bytes(csv)
    judgement = judge(RunDirectory(run))
    assert next(f for f in judgement.findings if f.check == "run-clocks").result is Result.ERROR
    assert judgement.verdict is Verdict.REHEARSAL


def test_a_fault_decides_the_verdict_of_a_run_whose_logs_are_good(run):
    assert judge(RunDirectory(run)).verdict is Verdict.REHEARSAL
    evidence.write_json(run, evidence.FAULTS, {"faults": [FAULT]})
    assert judge(RunDirectory(run)).verdict is Verdict.NOT_CONFORMANT
    (run / evidence.FAULTS).unlink()
    assert judge(RunDirectory(run)).verdict is Verdict.INCONCLUSIVE


def test_no_two_nodes_telemetry_is_open_at_once(run):
    """Each open file of a bundle has a buffer of a MiB, and there may be hundreds of nodes."""
    for node in range(3):
        (run / f"environment/telemetry-node{node}.csv").write_bytes(telemetry(1755, 1740))
    still_open = []

    class Watched(RunDirectory):
        def open(self, name):
            assert not [stream for stream in still_open if not stream.closed]
            stream = super().open(name)
            if "telemetry" in name:
                still_open.append(stream)
            return stream

    judge(Watched(run))
    assert len(still_open) == 3


def test_a_slow_device_is_reported_and_decides_nothing(run):
    (run / "environment/telemetry-node0.csv").write_bytes(telemetry(1755, 1200))
    judgement = judge(RunDirectory(run))
    assert next(f for f in judgement.findings if f.check == "run-clocks").result is Result.FAIL
    assert judgement.verdict is Verdict.REHEARSAL
