"""From the TOML files of this package to values, or to one sentence that says what is wrong with a file."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

from conformance.errors import SpecError
from conformance.spec.model import CheckSpec, Model, Optimizer, Reading, Reference, Workload

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPEC_DIR = Path(__file__).parent
WORKLOAD_DIR = SPEC_DIR / "workloads"
WORKLOAD_SCHEMA = SPEC_DIR / "workload.schema.json"
CHECKS_SCHEMA = SPEC_DIR / "checks.schema.json"

# Values that need no source: they name or select, the benchmark does not set them.
_UNSOURCED = {"name", "title", "kind", "mark", "official", "free", "readings", "sources"}


def load_workload(name: str) -> Workload:
    """Load one workload by name.

    Args:
        name: Name of a file in ``spec/workloads``, without its suffix.

    Raises:
        SpecError: The name is unknown, or its file is malformed.
    """
    known = sorted(path.stem for path in WORKLOAD_DIR.glob("*.toml"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise SpecError(f"There is no workload named {name!r}.", f"{hint}The workloads are: {', '.join(known)}.")
    return _cached_workload(name)


@functools.cache
def _cached_workload(name: str) -> Workload:
    return read_workload(WORKLOAD_DIR / f"{name}.toml")


def all_workloads() -> tuple[Workload, ...]:
    """Load every workload, the official ones first, each group by name.

    Raises:
        SpecError: One of the files is malformed.
    """
    names = [path.stem for path in WORKLOAD_DIR.glob("*.toml")]
    return tuple(sorted((load_workload(name) for name in names), key=lambda w: (not w.official, w.name)))


def read_workload(path: Path) -> Workload:
    """Read and validate one workload file.

    Args:
        path: A TOML file.

    Raises:
        SpecError: The file cannot be read, is not TOML, breaks the schema, or contradicts itself.
    """
    raw, document = _read_toml(path, WORKLOAD_SCHEMA)
    _demand_sources(path, document)
    workload = Workload(
        **{
            **document,
            "model": Model(**document["model"]),
            "optimizer": Optimizer(**document["optimizer"]),
            "reference": Reference(**document["reference"]),
            "loss_target": document.get("loss_target"),
            "checkpoint_every": document.get("checkpoint_every"),
            "interrupt_at": document.get("interrupt_at"),
            "data_digest": document.get("data_digest"),
            "full_layers": document.get("full_layers"),
            "free": tuple(document["free"]),
            "readings": tuple(Reading(**reading) for reading in document.get("readings", ())),
            "sources": tuple(document["sources"].items()),
            "digest": hashlib.sha256(raw).hexdigest(),
        }
    )
    _demand_consistency(path, workload)
    return workload


@functools.cache
def load_checks() -> dict[str, CheckSpec]:
    """Load the description of every check, by id.

    Raises:
        SpecError: ``spec/checks.toml`` is malformed.
    """
    path = SPEC_DIR / "checks.toml"
    _, document = _read_toml(path, CHECKS_SCHEMA)
    return {
        check_id: CheckSpec(id=check_id, **{**check, "applies": tuple(check["applies"])})
        for check_id, check in document.get("check", {}).items()
    }


def _read_toml(path: Path, schema: Path) -> tuple[bytes, dict[str, Any]]:
    """Read a TOML file and hold it against a JSON Schema.

    Returns:
        The bytes of the file and the document in them.

    Raises:
        SpecError: With file, and line and column or key, of the first fault.
    """
    try:
        raw = path.read_bytes()
        document = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8: byte {error.start} is {raw[error.start]:#04x}.") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not valid TOML: {error}.", "Correct that place in the file.") from error

    faults = _schema_faults(document, json.loads(schema.read_text("utf-8")))
    if faults:
        raise SpecError(f"{path} breaks {schema.name}: {'; '.join(faults)}.", "Correct these keys.")
    return raw, document


def _schema_faults(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Hold a TOML document against a JSON Schema, strictly: 20.0 is no integer, and nan and inf are no numbers."""
    import jsonschema  # here, because it is slow to import and `conformance --help` has no use for it

    types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            ),
        }
    )
    strict = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=types)  # type: ignore[no-untyped-call]
    validator = strict(schema)
    faults = sorted(validator.iter_errors(document), key=lambda fault: fault.json_path)
    return [f"{fault.json_path.removeprefix('$.')}: {fault.message}" for fault in faults]


def _demand_sources(path: Path, document: dict[str, Any]) -> None:
    """Raise SpecError unless every value that the benchmark sets has a source."""
    sources = document["sources"]
    sourced = [key for key in document if key not in _UNSOURCED]
    missing = [
        f"{key}.{leaf}" if leaf else key
        for key in sourced
        for leaf in (document[key] if isinstance(document[key], dict) else [""])
        if key not in sources and f"{key}.{leaf}" not in sources
    ]
    if missing:
        raise SpecError(f"{path} gives no source for {', '.join(missing)}.", "Name it under [sources].")


def _demand_consistency(path: Path, workload: Workload) -> None:
    """Raise SpecError where values are each legal but do not go together."""
    model, reference = workload.model, workload.reference
    faults = []
    if workload.name != path.stem:
        faults.append(f"its name is {workload.name!r}, expected that of the file, {path.stem!r}")
    if reference.cards % (reference.tensor * reference.pipeline):
        faults.append(
            f"reference: {reference.cards} cards do not divide by tensor {reference.tensor} x "
            f"pipeline {reference.pipeline}"
        )
    if model.hidden_size % model.num_attention_heads:
        faults.append(f"model: hidden_size {model.hidden_size} does not divide by {model.num_attention_heads} heads")
    if model.num_attention_heads % model.num_kv_attention_heads:
        faults.append(
            f"model: {model.num_attention_heads} heads do not divide by {model.num_kv_attention_heads} KV heads"
        )
    if ("num_layers" in workload.free) != (workload.full_layers is not None):
        faults.append("full_layers goes with num_layers in free, and only one of them is given")
    if workload.official and workload.free:
        faults.append(f"free: an official workload frees nothing, got {', '.join(workload.free)}")
    if faults:
        raise SpecError(f"{path} contradicts itself: {'; '.join(faults)}.")
