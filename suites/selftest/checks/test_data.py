"""Which data was it? Each way to train on other data than were fingerprinted turns a check red."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from conformance.checks.data import in_time, loaded, moment, pinned, recorded
from conformance.checks.finding import Result
from conformance.data import Fingerprint, Shard
from conformance.internevo.log import LogHead
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload

PLAN = make_plan(load_workload("tiny-accuracy"), Topology(1, 2))
PACKED = PLAN.micro_bsz * PLAN.model.seq_len


def shard(name, packs, content):
    return Shard(name, packs * 1500, content * 64, "f" * 64, packs, packs * PACKED + 7)


DATA = Fingerprint("raw", "e" * 64, 32000, (shard("en/a-00000.bin", 100, "a"), shard("en/b-00000.bin", 60, "b")))
HEAD = LogHead(data=(2, 160, 0))


def test_sound_data_pass_every_check():
    finding, found = recorded(PLAN, [DATA.to_json(), DATA.to_json()])
    assert (finding.result, found) == (Result.PASS, DATA)
    assert pinned(PLAN, DATA, DATA.digest).result is Result.PASS
    assert loaded(PLAN, DATA, [HEAD, HEAD], {"en"}).result is Result.PASS


def edited(**changes):
    return {**DATA.to_json(), **changes}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([None], "No fingerprint"),
        ([edited(tokens=DATA.tokens + 1)], "contradicts itself"),
        ([edited(digest="0" * 64)], "contradicts itself"),
        ([{"version": 1}], "malformed"),
        ([replace(DATA, shards=(*DATA.shards, replace(DATA.shards[0], name="en/c"))).to_json()], "en/c has the very"),
        ([replace(DATA, vocabulary=50000).to_json()], "50000 entries"),
        ([DATA.to_json(), replace(DATA, mode="field:text").to_json()], "different data"),
        ([replace(DATA, shards=()).to_json()], "no tokens"),
    ],
)
def test_a_faulty_record_fails(values, told):
    finding, found = recorded(PLAN, values)
    assert (finding.result, found) == (Result.FAIL, None)
    assert told in finding.message


def test_a_truncated_set_is_not_the_pinned_one():
    short = replace(DATA, shards=DATA.shards[:1])
    assert pinned(PLAN, short, DATA.digest).result is Result.FAIL


def test_without_a_pin_an_official_run_stays_open():
    official = make_plan(load_workload("llama2-7b-accuracy"), Topology(8, 8))
    assert pinned(official, DATA, None).result is Result.ERROR
    assert "not pinned" in pinned(official, DATA, None).message
    assert pinned(PLAN, DATA, None).result is Result.SKIP


@pytest.mark.parametrize(
    ("head", "types", "told"),
    [
        (LogHead(), {"en"}, "random tokens"),
        (LogHead(data=(2, 159, 0)), {"en"}, "159 packs"),  # truncated after it was fingerprinted
        (LogHead(data=(2, 161, 0)), {"en"}, "161 packs"),
        (LogHead(data=(1, 100, 0)), {"en"}, "1 shards of 2"),
        (LogHead(data=(3, 160, 0)), {"en"}, "3 shards of 2"),
        (HEAD, {"en", "cn"}, "['cn', 'en']"),
        (HEAD, set(), "counts tokens of []"),
    ],
)
def test_what_was_not_loaded_fails(head, types, told):
    finding = loaded(PLAN, DATA, [HEAD, head], types)
    assert finding.result is Result.FAIL
    assert told in finding.message


def test_dropped_short_documents_are_allowed_for():
    # 11 documents of at most 49 tokens are at most 539 tokens; with 7 beyond whole packs of 256 in each of two shards
    # 8 cost the first pack of each, and the other 523 two more.
    assert loaded(PLAN, DATA, [LogHead(data=(2, 156, 11))], {"en"}).result is Result.PASS
    assert loaded(PLAN, DATA, [LogHead(data=(2, 155, 11))], {"en"}).result is Result.FAIL
    assert loaded(PLAN, DATA, [LogHead(data=(0, 0, 10_000))], {"en"}).result is Result.PASS


RECORD = {"started": "2026-11-23T10:00:00.000+00:00", "ended": "2026-11-23T12:00:00.000+00:00"}
RANK = {"utc_offset_seconds": 3600}
BEGIN = datetime(2026, 11, 23, 11, 1)  # local time


def times(first, minutes=100):
    return np.array([first + timedelta(minutes=minute) for minute in range(minutes)], "datetime64[ms]")


def test_a_log_of_the_run_is_in_time():
    killed = {**RECORD, "ended": None}
    assert in_time([(RECORD, RANK, times(BEGIN)), (killed, RANK, times(BEGIN))]).result is Result.PASS


@pytest.mark.parametrize(
    ("record", "rank", "first"),
    [
        (RECORD, RANK, BEGIN - timedelta(days=1)),  # a copied log
        (RECORD, RANK, BEGIN + timedelta(hours=1)),
        (RECORD, {"utc_offset_seconds": 0}, BEGIN + timedelta(minutes=30)),
        (RECORD, {}, BEGIN),
        ({}, RANK, BEGIN),
    ],
)
def test_a_copied_log_is_not(record, rank, first):
    finding = in_time([(RECORD, RANK, times(BEGIN)), (record, rank, times(first))])
    assert finding.result is Result.FAIL
    assert "attempt 2" in finding.message


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01", "2026-01-01T00:00:00", "now", None]
)
def test_a_moment_that_has_no_utc_is_none(text):
    assert moment(text) is None
    assert in_time([({"started": text}, RANK, times(BEGIN))]).result is Result.FAIL


@pytest.mark.parametrize("text", ["2026-11-24T01:00:00+01:00", "2026-11-24T00:00:00Z", "2026-11-24T00:00:00+00:00"])
def test_a_moment_is_in_utc_on_every_python(text):
    assert moment(text) == datetime(2026, 11, 24, tzinfo=timezone.utc)
    assert moment(text).utcoffset() == timedelta(0)
