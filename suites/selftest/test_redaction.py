"""Redaction: every rule removes what it is for, spares what looks like it, and breaks no log."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import evidence, redaction
from conformance.evidence import RunDirectory
from conformance.internevo.log import parse_log
from conformance.judgement import judge
from conformance.redaction import Redactor, redact_json, redact_run, redact_text
from conformance.report.build import build_predicate

LOG = Path(__file__).parents[2] / "fixtures/tiny-perf-run/logs/node0/rank0.log"
SIGNER = {"self_issued": True, "time": "2026-11-23T21:20:39Z"}


def alice():
    return Redactor(home=b"/data/people/alice", user=b"alice")


REMOVED = [
    ("master at 10.1.2.3:29500", "master at [address-1]:29500", "address"),
    ("from 10.1.2.3 to 192.168.7.9, 10.1.2.3.", "from [address-1] to [address-2], [address-1].", "address"),
    ("tcp://[2001:db8::17]:29500", "tcp://[[address-1]]:29500", "address"),
    ("via fe80::1c2:3ff:fe04:506%eth0", "via [address-1]", "address"),
    ("2001:0db8:0000:0000:0000:0000:0000:0017 up", "[address-1] up", "address"),
    ("fd12:3456:789a::1,", "[address-1],", "address"),
    ("https://bob:hunter2@git.example/x", "https://[secret]@git.example/x", "secret"),
    ("https://oauthtoken@git.example/x", "https://[secret]@git.example/x", "secret"),
    ("AWS_SECRET_ACCESS_KEY=abc/def+1", "AWS_SECRET_ACCESS_KEY=[secret]", "secret"),
    ("WANDB_API_KEY: 0123abcd", "WANDB_API_KEY: [secret]", "secret"),
    ("db_password='p4ss'", "db_password='[secret]'", "secret"),
    ('{"access_token": "a1b2c3"}', '{"access_token": "[secret]"}', "secret"),
    ("Authorization: Bearer abc.def", "Authorization: Bearer [secret]", "secret"),
    ("run --auth-token abcdef --x", "run --auth-token [secret] --x", "secret"),
    ("hook https://open.feishu.cn/open-apis/bot/v2/hook/0a1b2c3d-4e", "…/bot/v2/hook/[secret]", "secret"),
    ("found hf_abcdefghijklmnopqrstuvwx here", "found [secret] here", "secret"),
    ("found ghp_abcdefghijklmnopqrstuvwx here", "found [secret] here", "secret"),
    ("key AKIAABCDEFGHIJKLMNOP.", "key [secret].", "secret"),
    ('File "/home/bob/train.py", line 3', 'File "/home/[user]/train.py", line 3', "user"),
    ("/Users/eve: not found", "/Users/[user]: not found", "user"),
    ("in /data/people/alice/x.py", "in [user]/x.py", "user"),
    ("cache /scratch/alice/pip", "cache /scratch/[user]/pip", "user"),
    ("ssh alice@node7", "ssh [user]@node7", "user"),
    ("USER=alice", "USER=[user]", "user"),
]
KEPT = [
    "127.0.0.1:29500 0.0.0.0 [::]:29500 ::1",
    "flash-attn==2.5.8.1 v1.2.3.4 1.2.3 1.2.3.4.5 999.1.1.1",
    "2026-11-23 21:19:53,362 at 21:19:53 0000:1b:00.0 GPU-2d01:aa",
    "std::vector c10::Error at::native::add ffff::x face:book",
    "num_consumed_tokens=10485760 tokens/en=489165 tgs (tokens/gpu/second)=3345.72 eos_token=2 use_token=true",
    "tokenizer: llama tokens: many secretary keyboard=us passwords are never printed",
    "the secret key was not found; a token is missing",
    "malice@x /malicealice/x alicetown user=aliceb lr=1e-05 loss=nan /homes/bob",
]


@pytest.mark.parametrize(("line", "expected", "rule"), REMOVED, ids=[line[0] for line in REMOVED])
def test_what_a_rule_is_for_is_replaced_and_counted(line, expected, rule):
    redactor = alice()
    result = redact_text(line.encode(), redactor).decode()
    assert result == expected if "…" not in expected else result.endswith(expected[1:])
    assert set(redactor.counts) == {rule}
    assert redactor.counts[rule] == len(re.findall(rf"\[{rule}[^\]]*\]", result))


@pytest.mark.parametrize("line", KEPT)
def test_what_only_looks_like_it_stays(line):
    redactor = alice()
    assert redact_text(line.encode(), redactor) == line.encode()
    assert not redactor.counts


def test_one_address_has_one_number_in_all_files():
    redactor = alice()
    assert redact_text(b"10.0.0.1 10.0.0.2", redactor) == b"[address-1] [address-2]"
    assert redact_text(b"10.0.0.2 10.0.0.3", redactor) == b"[address-2] [address-3]"


def test_nobody_is_looked_for_where_no_name_is_known():
    assert redact_text(b"alice@x /data/people/alice/y", Redactor()) == b"alice@x /data/people/alice/y"


def test_json_keeps_its_form_its_versions_and_its_digests():
    value = {
        "device": {"driver": "1.2.3.4", "uuid": "10.0.0.1", "model": "X1"},
        "packages": {"lib": "12.4.5.8"},
        "environment": {"HF_TOKEN": "abcdef", "MAX_TOKEN": "4096", "MASTER_ADDR": "10.0.0.1", "USER": "alice"},
        "output": ["cannot reach 10.0.0.1", 7, None, 1.5],
        "token": True,
    }
    redactor = alice()
    assert redact_json(value, redactor) == {
        "device": value["device"],
        "packages": value["packages"],
        "environment": {"HF_TOKEN": "[secret]", "MAX_TOKEN": "4096", "MASTER_ADDR": "[address-1]", "USER": "[user]"},
        "output": ["cannot reach [address-1]", 7, None, 1.5],
        "token": True,
    }
    assert redactor.counts == {"secret": 1, "address": 2, "user": 1}


pieces = st.sampled_from([line for line, _, _ in REMOVED] + KEPT + ["\n", " ", "=", ":", '"', "[", "]", "/", "@"])
texts = st.lists(pieces | st.text(max_size=8), max_size=12).map("".join)


@given(texts)
def test_redacting_again_changes_nothing(text):
    redactor = alice()
    once = redact_text(text.encode(), redactor)
    redactor.counts.clear()
    assert redact_text(once, redactor) == once
    assert not redactor.counts


@given(texts)
def test_lines_stay_lines(text):
    assert redact_text(text.encode(), alice()).count(b"\n") == text.encode().count(b"\n")


@given(st.binary(max_size=300))
def test_any_bytes_are_taken(data):
    redact_text(data, alice())


octets = st.integers(0, 255)


@given(st.tuples(octets, octets, octets, octets).filter(lambda a: a[0] != 127 and a != (0, 0, 0, 0)))
def test_every_address_of_version_4_goes(address):
    assert redact_text(b"to %d.%d.%d.%d:80" % address, alice()) == b"to [address-1]:80"


@given(st.ip_addresses(v=6, network="2000::/3") | st.ip_addresses(v=6, network="fc00::/7"))
def test_every_address_of_version_6_goes_in_either_spelling(address):
    for text in (str(address), address.exploded):
        assert redact_text(f"[{text}]:80".encode(), alice()) == b"[[address-1]]:80"


@given(st.floats(), st.integers(0, 10**12), st.sampled_from(["tgs", "loss", "lr", "grad_norm", "num_consumed_tokens"]))
def test_no_figure_is_ever_touched(value, count, name):
    line = f"step={count} {name}={value!r} tgs (tokens/gpu/second)={value!r} num_consumed_tokens={count}\n".encode()
    assert redact_text(line, alice()) == line


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_a_real_log_with_addresses_and_secrets_in_it_parses_the_same_without_them():
    text = LOG.read_bytes()
    lines = text.splitlines(keepends=True)
    told = b"W [c10d] client 10.0.0.7:4711 of alice@node HF_TOKEN=abcdef /home/alice/x\n"
    dirty = told.join(lines[:40]) + b"".join(lines[40:])
    clean = redact_text(dirty, alice())
    assert b"10.0.0.7" not in clean
    assert b"abcdef" not in clean
    assert b"alice" not in clean
    before, after = (parse_log(io.BytesIO(data)) for data in (dirty, clean))
    assert len(before) == len(after) == 1
    assert after[0].steps.frame().equals(before[0].steps.frame())
    assert len(after[0].steps) == 20


def test_a_run_is_redacted_in_place_listed_and_judged_the_same(run):
    log = run / "logs/node0/rank0.log"
    log.write_bytes(b"[c10d] 10.0.0.7 and 10.0.0.8\n" + log.read_bytes())
    record = json.loads((run / evidence.RUN).read_text())
    record["command"].append("--master_addr=10.0.0.8")
    record["environment"]["HF_TOKEN"] = "abcdef"
    evidence.write_json(run, evidence.RUN, record)
    before = judge(RunDirectory(run))
    found = redact_run(run, alice())
    assert found == [
        {"rule": "address", "file": "environment/run.json", "count": 1},
        {"rule": "secret", "file": "environment/run.json", "count": 1},
        {"rule": "address", "file": "logs/node0/rank0.log", "count": 2},
    ]
    everything = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"10.0.0." not in everything
    assert b"abcdef" not in everything
    assert log.read_bytes().startswith(b"[c10d] [address-2] and [address-1]\n")
    after = judge(RunDirectory(run))
    assert after.findings == before.findings
    assert after.metrics == before.metrics
    assert build_predicate(RunDirectory(run), after, SIGNER)["redactions"] == sorted(
        found, key=lambda one: (one["file"], one["rule"])
    )


def test_configurations_patches_keys_and_earlier_segments_stay(run):
    kept = {
        "configs/internevo.py": b"# 10.0.0.7\n",
        "patches/own.patch": b"+10.0.0.7\n",
        "environment/signer.pub": b"10.0.0.7\n",
        "logs/segment0/node0/rank0.log": b"10.0.0.7\n",
    }
    for name, data in kept.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(data)
    redact_run(run, alice())
    assert {name: (run / name).read_bytes() for name in kept} == kept


def test_the_lists_of_earlier_segments_stand_in_the_report(run):
    judged = judge(RunDirectory(run))
    (run / "environment/segment0").mkdir()
    one = {"rule": "address", "file": "logs/node0/rank0.log", "count": 3}
    evidence.write_json(run, "environment/segment0/redactions.json", {"redactions": [one]})
    redact_run(run, alice())
    predicate = build_predicate(RunDirectory(run), judged, SIGNER)
    assert predicate["redactions"] == [{**one, "file": "logs/segment0/node0/rank0.log"}]


def test_a_file_without_anything_to_redact_is_not_written(run):
    logs = [path for path in (run / "logs").rglob("*") if path.is_file()]
    for path in logs:
        path.chmod(0o444)
    inodes = [path.stat().st_ino for path in logs]
    assert redact_run(run, alice()) == []
    assert [path.stat().st_ino for path in logs] == inodes
    assert json.loads((run / evidence.REDACTIONS).read_text()) == {"redactions": []}


def test_what_stands_in_any_block_of_a_long_log_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(redaction, "_BLOCK", 64)
    run = tmp_path / "run"
    for folder in ("configs", "environment", "logs/node0", "work"):
        (run / folder).mkdir(parents=True)
    lines = [f"line {number} {'10.0.0.7' if number % 50 == 49 else 'nothing'}\n" for number in range(200)]
    lines.append("the end without a newline 10.0.0.8")
    (run / "logs/node0/rank0.log").write_text("".join(lines))
    assert redact_run(run, alice())[0]["count"] == 5
    text = (run / "logs/node0/rank0.log").read_text()
    assert text == "".join(lines).replace("10.0.0.7", "[address-1]").replace("10.0.0.8", "[address-2]")
    assert list((run / "work").iterdir()) == []


def test_a_json_file_that_was_cut_off_is_redacted_as_text(run):
    (run / "environment/rank1.json").write_text('{"host": "10.0.0.7", "devi')
    redact_run(run, alice())
    assert (run / "environment/rank1.json").read_text() == '{"host": "[address-1]", "devi'


def test_a_home_folder_elsewhere_is_known_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("HOME", "/data/people/carol")
    monkeypatch.setenv("LOGNAME", "carol")
    log = run / "logs/node0/rank1.log"
    log.write_bytes(log.read_bytes() + b"/data/people/carol/x carol@n\n")
    redact_run(run)
    assert log.read_bytes().endswith(b"[user]/x [user]@n\n")


def test_a_copy_of_the_fixture_holds_nothing_to_redact(tmp_path):
    shutil.copytree(LOG.parents[2], tmp_path / "run")
    assert redact_run(tmp_path / "run", Redactor()) == []
