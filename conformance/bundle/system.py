"""The description of the system that was tested: filled from the evidence, checked against it, asked for where silent.

The fields follow those that MLPerf asks of a system (mlcommons/policies, submission rules, "system description").
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.errors import EvidenceError, SignatureError
from conformance.evidence import device_name
from conformance.report import schemas
from conformance.strictjson import quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Predicate = Mapping[str, Any]

MAX_BYTES = 64 * 2**10
GIB = 2**30
# What firmware and kernel keep for themselves of the memory that is installed.
MEMORY_TOLERANCE = 0.1


@dataclass(frozen=True)
class Field:
    """One field of a description.

    Args:
        name: Its name in system.json.
        asks: What it says, for the person who fills it in.
        told: What each report's evidence says of it; only texts and numbers count. None where evidence cannot tell.
        tolerance: How far a stated number may lie from the evidence's, relative to it.
    """

    name: str
    asks: str
    told: Callable[[Predicate], Sequence[object]] | None = None
    tolerance: float = 0.0


# A report's schema leaves open what stands in these places, and its maker may have written anything there.
def _objects(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _hosts(report: Predicate) -> list[Mapping[str, Any]]:
    return _objects(report["environment"].get("hosts"))


def _host(name: str) -> Callable[[Predicate], list[object]]:
    return lambda report: [host.get(name) for host in _hosts(report)]


def _device(name: str) -> Callable[[Predicate], list[object]]:
    return lambda report: [device.get(name) for device in report["devices"]]


def _plan(name: str) -> Callable[[Predicate], list[object]]:
    return lambda report: [report["plan"].get(name)]


def _memory(report: Predicate) -> list[object]:
    found = [host.get("memory_bytes") for host in _hosts(report)]
    return [round(value / GIB, 1) for value in found if isinstance(value, int | float)]


def _accelerators(report: Predicate) -> list[object]:
    return [device_name(device["vendor"], device["model"]) for device in report["devices"]]


def _ports(report: Predicate) -> list[object]:
    ports = [_objects(host.get("rdma_ports")) for host in _hosts(report)]
    return [", ".join(str(port.get("rate", "?")) for port in of_host) for of_host in ports]


def _torch(report: Predicate) -> list[object]:
    packages = report["environment"].get("packages")
    return [packages.get("torch")] if isinstance(packages, dict) else []


FIELDS = (
    Field("system_name", "name under which the system is known"),
    Field("availability", 'may others have it: "available", "preview" (announced) or "research"'),
    Field("nodes", "number of nodes that took part", _plan("nodes")),
    Field("processor", "model of the host processors", _host("processor")),
    Field("processors_per_node", "processor sockets of a node", _host("processors")),
    Field("cores_per_node", "processor cores of a node, all sockets together", _host("cores")),
    Field("memory_gib_per_node", "memory of a node, in GiB", _memory, MEMORY_TOLERANCE),
    Field("storage", "kind and size of the storage that holds data and run folders"),
    Field("accelerator", "vendor and model of the accelerator", _accelerators),
    Field("accelerators_per_node", "accelerators that took part on each node", _plan("devices_per_node")),
    Field("accelerator_memory", "memory of one accelerator, with its kind and unit", _device("memory")),
    Field("accelerator_interconnect", "what connects the accelerators of a node, with its bandwidth"),
    Field("driver", "version of the accelerator's driver", _device("driver")),
    Field("firmware", "version of the accelerator's firmware", _device("firmware")),
    Field("network", "what connects the nodes: adapters of a node, and their kind; \"none\" for one node"),
    Field("network_ports_per_node", "rates of a node's RDMA ports, separated by commas", _ports),
    Field("topology", "how the nodes' network is laid out, such as fat tree, rail-optimised, torus"),
    Field("power_watts_per_node", 'rated power of a node in W, accelerators included; "unknown" on a rented one'),
    Field("cooling", 'how the nodes are cooled: "air", "liquid" or in words'),
    Field("operating_system", "operating system of the nodes, with its version", _host("system")),
    Field("kernel", "version of the kernel", _host("kernel")),
    Field("framework", "version of PyTorch", _torch),
)  # fmt: skip


def facts(reports: Sequence[Predicate]) -> dict[str, str | int | float]:
    """What the evidence says of the system.

    Args:
        reports: The predicates of the runs' reports.

    Returns:
        Values by field; a number is the largest of all runs, because a run may use a part of the system; different
        texts stand side by side.
    """
    known: dict[str, str | int | float] = {}
    for field in FIELDS:
        told = [value for report in reports for value in (field.told(report) if field.told else ()) if value]
        numbers = [value for value in told if isinstance(value, int | float) and not isinstance(value, bool)]
        texts = {value for value in told if isinstance(value, str)}
        if numbers:
            known[field.name] = max(numbers)
        elif texts:
            known[field.name] = " | ".join(sorted(texts))
    return known


def check(system: object) -> None:
    """Hold a description against schema/system-v1.schema.json.

    Args:
        system: The description.

    Raises:
        SignatureError: It breaks the schema.
    """
    schemas.check(system, "system-v1", "The system description", SignatureError)


def contradictions(system: Mapping[str, Any], reports: Sequence[Predicate]) -> list[str]:
    """Where a description says something else than the evidence.

    Args:
        system: The description.
        reports: The predicates of the runs' reports.

    Returns:
        A phrase for each field.
    """
    known = facts(reports)
    return [
        f"{field.name} is {quoted(str(system.get(field.name, 'absent')))} and the evidence says "
        f"{quoted(str(known[field.name]))}"
        for field in FIELDS
        if field.name in known and not _agree(system.get(field.name), known[field.name], field.tolerance)
    ]


def _agree(stated: object, known: str | float, tolerance: float) -> bool:
    if isinstance(known, str):
        return isinstance(stated, str) and stated.split() == known.split()
    if isinstance(stated, bool) or not isinstance(stated, (int, float)):
        return False
    return abs(stated - known) <= tolerance * known


def complete(given: Mapping[str, Any], reports: Sequence[Predicate]) -> dict[str, Any]:
    """Fill a description from the evidence.

    Args:
        given: What the vendor stated.
        reports: The predicates of the runs' reports.

    Returns:
        The whole description.

    Raises:
        EvidenceError: A field is unknown or missing, or the evidence says otherwise.
        SignatureError: A value is of the wrong kind.
    """
    names = [field.name for field in FIELDS]
    if strange := sorted(set(given) - set(names)):
        raise EvidenceError(
            f"The system description has a field {quoted(strange[0])}; known are {', '.join(names)}.",
            "Correct its name.",
        )
    known = facts(reports)
    if missing := [name for name in names if name not in given and name not in known]:
        raise EvidenceError(
            f"The system description lacks {', '.join(missing)}, and the evidence does not tell.",
            "Fill in the template that `conformance bundle` prints without --system.",
        )
    system = {**known, **given}
    check(system)
    if wrong := contradictions(system, reports):
        raise EvidenceError(
            f"The system description contradicts the evidence: {'; '.join(wrong)}.",
            "Leave out what the evidence tells, or correct it.",
        )
    return system


def read(path: Path) -> dict[str, Any]:
    """Read what the vendor stated.

    Args:
        path: A TOML file.

    Returns:
        Values by field; an empty text counts as not stated.

    Raises:
        EvidenceError: It cannot be read, or is no TOML.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise EvidenceError(f"The system description {path} has more than {MAX_BYTES} bytes.")
        stated = tomllib.loads(data.decode())
    except OSError as error:
        raise EvidenceError(f"The system description {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EvidenceError(f"The system description {path} is no TOML: {error}.") from error
    return {name: value for name, value in stated.items() if value != ""}


def template(reports: Sequence[Predicate]) -> str:
    """A description to fill in.

    Args:
        reports: The predicates of the runs' reports.

    Returns:
        TOML: what is asked for, empty; what the evidence tells, as comments.
    """
    known = facts(reports)
    lines = ["# Fill in every empty field. What the evidence tells is filled in by itself; it is shown for your eyes."]
    for field in FIELDS:
        lines += ["", f"# {field.asks}"]
        # A JSON string with its escapes is also a TOML string.
        lines.append(
            f"# {field.name} = {json.dumps(known[field.name])}" if field.name in known else f'{field.name} = ""'
        )
    return "\n".join(lines) + "\n"
