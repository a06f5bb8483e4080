"""How long redacting a log takes, beside hashing it: python suites/selftest/benchmarks/bench_redaction.py [MiB]"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path

from conformance.redaction import Redactor, redact_run

LOG = Path(__file__).parents[3] / "fixtures/tiny-perf-run/logs/node0/rank0.log"


def main(mebibytes: int) -> None:
    """Redact a log of a real run's step lines, clean and with an address in it, and hash it."""
    lines = LOG.read_bytes().splitlines(keepends=True)
    steps = b"".join(line for line in lines if b"tgs (tokens/gpu/second)" in line)
    body = steps * ((mebibytes << 20) // len(steps))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        log = run / "logs/node0/rank0.log"
        log.parent.mkdir(parents=True)
        (run / "environment").mkdir()
        for name, head in (("nothing to redact", b""), ("an address in its first line", b"at 10.0.0.7\n")):
            log.write_bytes(head + b"".join(lines[:40]) + body)
            start = time.perf_counter()
            hashlib.sha256(log.read_bytes()).hexdigest()
            hashed = time.perf_counter() - start
            start = time.perf_counter()
            found = redact_run(run, Redactor(b"/data/people/alice", b"alice"))
            took = time.perf_counter() - start
            print(f"{mebibytes} MiB, {name}: redacted in {took:.2f} s, sha256 {hashed:.2f} s, found {found}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
