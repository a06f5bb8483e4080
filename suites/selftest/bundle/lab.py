"""A lab with a policy, a vendor with a key, and a real rehearsal that answers the lab's challenge.

Loaded with runpy by the tests that need them; what each test changes, it changes in the open.
"""

import hashlib
import json
import re
import runpy
import shutil
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

from conformance import __version__, evidence, journal, strictjson
from conformance.bundle import archive, policy, submission
from conformance.bundle.pack import pack, submit
from conformance.bundle.policy import Bench
from conformance.evidence import RunDirectory
from conformance.internevo.config import render_config
from conformance.internevo.patches import PATCHES
from conformance.judgement import judge, plan_of
from conformance.report import challenge, dsse, keys, statement
from conformance.report.build import suite_digest, write_report
from conformance.selftest.run import end_journal, good_run, refresh  # noqa: F401
from conformance.spec import load_workload

# The fixture's run went from 21:19 to 21:20 that day.
ISSUED = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
NOW = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
VENDOR = "Example Silicon"
WORKLOAD = "tiny-perf"
ACCURACY = "tiny-accuracy"
OFFICIAL = "llama2-7b-perf"
FIXTURES = Path(__file__).resolve().parents[3] / "fixtures"
HonestLog = runpy.run_path(str(FIXTURES / "honest_log.py"))["Run"]
STATED = {
    "system_name": "bench one",
    "availability": "research",
    "processor": "AMD EPYC",
    "processors_per_node": 1,
    "cores_per_node": 2,
    "memory_gib_per_node": 8.0,
    "storage": "one local disk",
    "accelerator_memory": "none",
    "accelerator_interconnect": "none",
    "driver": "none",
    "firmware": "none",
    "network": "none",
    "network_ports_per_node": "none",
    "topology": "one node",
    "power_watts_per_node": 200,
    "cooling": "air",
    "operating_system": "Debian 12",
}
# What the preflight measures of its own host.
MEASURED = ("processor", "processors_per_node", "cores_per_node", "memory_gib_per_node", "operating_system")


class Lab:
    """Keys by name, and what is made with them, in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.path = {name: folder / f"{name}.pem" for name in ("lab", "vendor", "operator", "stranger", "second")}
        self.key = {name: keys.generate_key(path) for name, path in self.path.items()}

    def public(self, name):
        return keys.public_pem(self.key[name].public_key()).decode()

    def key_id(self, name):
        return keys.key_id(self.key[name].public_key())

    def entry(self, name, role, holder, **changes):
        entry = {
            "public_key": self.public(name),
            "name": holder,
            "role": role,
            "valid_from": "2026-01-01T00:00:00Z",
            "valid_until": "2027-01-01T00:00:00Z",
            "revoked": None,
        }
        return {**entry, **changes}

    def document(self):
        """A policy that accepts the honest bundle."""
        return {
            "version": 1,
            "name": "Example Lab",
            "issued": "2026-11-01T00:00:00Z",
            "expires": "2027-11-01T00:00:00Z",
            "keys": [
                self.entry("lab", "lab", "Example Lab"),
                self.entry("vendor", "vendor", VENDOR),
                self.entry("operator", "operator", "Example Site"),
            ],
            "required_roles": ["vendor"],
            "challenge_required": True,
            "suites": [{"version": __version__, "tree_digest": suite_digest()}],
            "workloads": [
                {
                    "name": WORKLOAD,
                    "digest": load_workload(WORKLOAD).digest,
                    "runs": 1,
                    "preflights": 0,
                    "max_attempts": 3,
                }
            ],
            "data": [],
            "floors": [],
            "patches": [],
            "waivers": [],
            "limits": {"members": 10000, "member_bytes": 2**30, "total_bytes": 2**31},
        }

    def envelope(self, document, signer="lab"):
        payload = strictjson.dumps(document)
        return dsse.sign(payload, policy.PAYLOAD_TYPE, [self.key[signer]])

    def bench(self, change=lambda document: None, *, now=NOW, spent=None):
        document = self.document()
        change(document)
        return Bench(policy.load(self.envelope(document)), now, spent or challenge.Spent())

    def challenge(self, vendor=VENDOR, workloads=(WORKLOAD,), *, issued=ISSUED, days=14, signer="lab"):
        return challenge.issue(vendor, list(workloads), timedelta(days=days), issued, self.key[signer])

    def run(self, name="first", envelope=None, *, answer=True):
        """A run that answers a challenge, as the suite leaves it before it is judged."""
        folder = self.folder / f"of-{name}"
        folder.mkdir()
        run = good_run(folder)
        run = run.rename(self.folder / name)
        if answer:
            envelope = self.challenge() if envelope is None else envelope
            (run / evidence.CHALLENGE).write_bytes(envelope)
            seed = challenge.seed(challenge.parse(envelope).nonce, WORKLOAD)
            edit(run / evidence.REQUEST, lambda request: request.update(seed=seed))
            # InternEvo prints the seed that it was given, and log-head holds it against the request.
            log = run / "logs/node0/rank0.log"
            log.write_text(log.read_text().replace(": 1024,", f": {seed},"))
        refresh(run)
        return run

    def bundle(self, run=None, *, signer="vendor", name="x.tar"):
        """Judge, sign and pack one run, as its maker does."""
        run = self.run() if run is None else run
        write_report(run, judge(RunDirectory(run)), self.path[signer])
        pack(run, self.folder / name)
        return self.folder / name

    def submission(self, runs, *, vendor=VENDOR, signer="vendor", name="s.tar", chain=True, stated=STATED):
        """Several runs under one statement; their journals are one chain, in this order."""
        for earlier, later in pairwise(runs) if chain else ():
            go_on(earlier, later)
        for run in runs:
            write_report(run, judge(RunDirectory(run)), self.path[signer])
        submit(runs, vendor, stated, self.key[signer], False, self.folder / name)
        return self.folder / name

    def accuracy(self, envelope, name="accuracy", after=None, **resumed):
        """A real accuracy rehearsal, interrupted and resumed, that answers a challenge; journalled after a run."""
        run = self.folder / name
        shutil.copytree(FIXTURES / "tiny-accuracy-run", run)
        (run / evidence.CHALLENGE).write_bytes(envelope)
        seed = challenge.seed(challenge.parse(envelope).nonce, ACCURACY)
        edit(run / evidence.REQUEST, lambda request: request.update(seed=seed))
        for log in (run / "logs").rglob("rank*.log"):
            log.write_text(log.read_text().replace(": 1024,", f": {seed},"))
        plan = plan_of(evidence.request_from_json(json.loads((run / evidence.REQUEST).read_text())))
        evidence.write_json(run, evidence.PLAN, plan.to_json())
        (run / evidence.CONFIG).write_text(render_config(plan))
        known = {patch.id: patch.digest for patch in PATCHES}
        for path in (run / "environment").rglob("rank*.json"):
            edit(path, lambda record: [patch.update(sha256=known[patch["id"]]) for patch in record["patches"]])
        self.journal_accuracy(run, after, **resumed)
        return run

    def journal_accuracy(self, run, after=None, resumes=("first",), outcome="interrupted"):
        """Journal both attempts of an accuracy rehearsal, and further ones that say that they go on from the first."""
        path = run / evidence.JOURNAL
        path.unlink()
        if after is not None:
            shutil.copyfile(after / evidence.JOURNAL, path)
        files = RunDirectory(run)
        details = {"workload": ACCURACY, "plan": evidence.digests(files)[evidence.PLAN]}
        journal.append(path, "started", "first", **details)
        left = evidence.attempt_digest(evidence.Segment(files, 0))
        journal.append(path, "ended", "first", outcome=outcome, evidence=left)
        for number, earlier in enumerate(resumes[:-1]):
            journal.append(path, "started", f"other{number}", **details, resumes=earlier)
            journal.append(path, "ended", f"other{number}", outcome="ended", evidence="0" * 64)
        journal.append(path, "started", run.name, **details, resumes=resumes[-1])
        journal.append(path, "ended", run.name, outcome="ended", evidence=evidence.attempt_digest(files))

    def official(self, envelope, name="official", seconds=260.0):
        """A run of LLaMA2 7B on one card, its log synthesised: 4,032 tokens a second, above the published floor."""
        run = self.run(name, envelope)
        for path in (*run.rglob("rank1.json"), *run.rglob("rank1.log")):
            path.unlink()
        seed = challenge.seed(challenge.parse(envelope).nonce, OFFICIAL)
        edit(run / evidence.REQUEST, lambda told: told.update(workload=OFFICIAL, devices_per_node=1, seed=seed))
        tag = load_workload(OFFICIAL).tag
        edit(run / evidence.RUN, lambda told: told["internevo"].update(kind="checkout", version=tag, tag=tag))
        text = HonestLog(micro_num=128, seconds=seconds).text().decode()
        (run / "logs/node0/rank0.log").write_text(text.replace(": 1024,", f": {seed},"))
        refresh(run)
        self.journal_again(run, OFFICIAL)
        return run

    def journal_again(self, run, workload):
        """Journal one run of a workload that begins and ends with the evidence as it stands."""
        (run / evidence.JOURNAL).unlink()
        plan = evidence.digests(RunDirectory(run))[evidence.PLAN]
        journal.append(run / evidence.JOURNAL, "started", run.name, workload=workload, plan=plan)
        digest = evidence.attempt_digest(RunDirectory(run))
        journal.append(run / evidence.JOURNAL, "ended", run.name, outcome="ended", evidence=digest)

    def preflight(self, after, change=lambda run: None):
        """A real preflight, changed, journalled after a run in the same reports folder."""
        run = self.folder / "preflight"
        shutil.copytree(FIXTURES / "tiny-preflight-run", run)
        edit(run / "environment/preflight-host.json", tell_devices)
        change(run)
        shutil.copyfile(after / evidence.JOURNAL, run / evidence.JOURNAL)
        journal.append(run / evidence.JOURNAL, "started", "preflight", workload="preflight", shapes=WORKLOAD)
        digest = evidence.attempt_digest(RunDirectory(run))
        journal.append(run / evidence.JOURNAL, "ended", "preflight", outcome="ended", evidence=digest)
        return run

    def with_preflight(self, run=None, change=lambda run: None):
        """A submission of a run and a preflight, which is changed."""
        run = self.run("perf") if run is None else run
        stated = {name: value for name, value in STATED.items() if name not in MEASURED}
        return self.submission([run, self.preflight(run, change)], chain=False, stated=stated)

    def signed_again(self, predicate, members, prefix="", form=statement.REPORT):
        """A statement about all members below a prefix but itself, as a maker with key and patience signs it."""
        name = prefix + (submission.STATEMENT if form is statement.SUBMISSION else evidence.REPORT)
        below = {file.removeprefix(prefix): data for file, data in members.items() if file.startswith(prefix)}
        subjects = {file: hashlib.sha256(data).hexdigest() for file, data in below.items() if prefix + file != name}
        payload = statement.build(predicate, subjects, form)
        return {name: dsse.sign(payload, statement.PAYLOAD_TYPE, [self.key["vendor"]])}

    def resubmitted(self, members, run, change=lambda predicate: None, changed=()):
        """Change a run of a submission, in its files or in what its report says, and sign report and submission."""
        prefix = f"{submission.RUNS}{run}/"
        members = {**members, **{prefix + name: data for name, data in dict(changed).items()}}
        predicate = payload_of(members[prefix + evidence.REPORT])["predicate"]
        change(predicate)
        members |= self.signed_again(predicate, members, prefix)
        said = payload_of(members[submission.STATEMENT])["predicate"]
        (row,) = (row for row in said["runs"] if row["name"] == run)
        row["report_id"] = statement.report_id(dsse.parse(members[prefix + evidence.REPORT]).payload)
        return self.written({**members, **self.signed_again(said, members, form=statement.SUBMISSION)})

    def written(self, members):
        """Members as a bundle."""
        path = self.folder / "spoiled.tar"
        path.unlink(missing_ok=True)
        archive.write_bundle(path, members)
        return path


def members_of(bundle):
    index = archive.read_index(bundle)
    return {name: archive.open_member(index, name).read() for name in index.members}


def payload_of(envelope):
    return json.loads(dsse.parse(envelope).payload)


def tell_devices(host):
    """Let the preflight name the devices of the other fixtures: it was measured before it recorded their identity."""
    records = host["processes"][0]["records"]
    if not any(record["kind"] == "identity" for record in records):
        for rank in range(2):
            record = json.loads((FIXTURES / f"tiny-perf-run/environment/rank{rank}.json").read_text())
            records.append({**record["device"], "kind": "identity"})


def accept_accuracy(document):
    """Let a policy accept the accuracy rehearsal on its own data."""
    workload = load_workload(ACCURACY)
    accepted = {"name": ACCURACY, "digest": workload.digest, "runs": 1, "preflights": 0, "max_attempts": 1}
    document["workloads"].append(accepted)
    document["data"].append({"name": workload.data, "sha256": workload.data_digest})


def accept_official(document):
    """Let a policy accept one run of the official workload, without a preflight."""
    accepted = {"name": OFFICIAL, "digest": load_workload(OFFICIAL).digest, "runs": 1, "preflights": 0}
    document["workloads"].append({**accepted, "max_attempts": 1})


def halve_speed(run):
    """Make the log of a run that of a system of half its speed, consistently."""
    log = run / "logs/node0/rank0.log"
    text = log.read_text()
    moment = re.compile(r"(?m)^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})")

    def read(match):
        return datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S") + timedelta(milliseconds=int(match[2]))

    begin = read(moment.search(text))

    def later(match):
        return (begin + 2 * (read(match) - begin)).isoformat(" ", "milliseconds").replace(".", ",")

    text = moment.sub(later, text)
    speeds = r"((?:tgs \(tokens/gpu/second\)|tgs/\w+|tflops|real_tgs)=)([\d.]+)"
    text = re.sub(speeds, lambda m: f"{m[1]}{float(m[2]) / 2}", text)
    log.write_text(re.sub(r"(fwd_bwd_time=)([\d.]+)", lambda m: f"{m[1]}{float(m[2]) * 2}", text))


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def go_on(earlier, later):
    """Continue the journal of one run with the attempt of another."""
    shutil.copyfile(earlier / evidence.JOURNAL, later / evidence.JOURNAL)
    attempt(later / evidence.JOURNAL, later.name, evidence=evidence.attempt_digest(RunDirectory(later)))


def attempt(path, name, outcome="ended", **details):
    plan = hashlib.sha256((path.parent / evidence.PLAN).read_bytes()).hexdigest()
    journal.append(path, "started", name, workload=WORKLOAD, plan=plan)
    journal.append(path, "ended", name, outcome=outcome, **details)


def answers(verification):
    return {answer.id: answer.answer for answer in verification.answers}
