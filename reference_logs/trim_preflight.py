"""A preflight's findings and figures as one JSON, without what names the machine.

python reference_logs/trim_preflight.py RUN >reference_logs/NAME.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TASKS = ("collectives", "device", "host", "step")
FIGURES = {"backend", "bandwidth", "capacity", "copy", "gemm", "group-bandwidth", "kernel-speed", "reduction", "step"}
FIGURES |= {"arrival", "link"}
SETUP = ("backend", "device", "nodes", "ranks", "rehearsal", "seed", "started", "suite", "workload")


def trimmed(run: Path) -> dict[str, Any]:
    """Read a preflight's evidence.

    Args:
        run: Its run directory.

    Returns:
        ``setup``, ``findings``, ``seconds`` and ``records``, the latter two by task; a record tells its rank.
    """
    environment = run / "environment"
    setup = json.loads((environment / "preflight.json").read_text("utf-8"))
    findings = json.loads((environment / "preflight-findings.json").read_text("utf-8"))["findings"]
    processes = {
        task: json.loads((environment / f"preflight-{task}.json").read_text("utf-8"))["processes"] for task in TASKS
    }
    return {
        "setup": {name: setup[name] for name in SETUP},
        "findings": [{name: finding[name] for name in ("check", "result", "message")} for finding in findings],
        "seconds": {task: max(process["seconds"] for process in all_) for task, all_ in processes.items()},
        "records": {
            task: [
                {"rank": process["rank"], **record}
                for process in all_
                for record in process["records"]
                if record["kind"] in FIGURES
            ]
            for task, all_ in processes.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps(trimmed(Path(sys.argv[1])), indent=1, sort_keys=True))
