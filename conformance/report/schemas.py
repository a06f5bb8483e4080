"""The JSON Schemas of what the lab signs: challenge, policy and verification summary, each under its own version."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from jsonschema import Draft202012Validator
from referencing import Registry

from conformance.errors import ConformanceError
from conformance.strictjson import quoted


def check(document: object, schema: str, what: str, error: type[ConformanceError]) -> None:
    """Hold a document against one of the schemas in ``schema/``.

    Args:
        document: The parsed document.
        schema: Name and version of the schema, such as "policy-v1".
        what: What the document is, to begin the error's sentence with.
        error: The error to raise.

    Raises:
        ConformanceError: ``error``, naming the place and the rule.
    """
    fault = next(_validator(schema).iter_errors(document), None)
    if fault is not None:
        place = fault.json_path.removeprefix("$.") if fault.json_path != "$" else "the top level"
        raise error(
            f"{what} is refused: at {quoted(place)}, {fault.validator} of the schema {schema} is broken: "
            f"{quoted(fault.message, 200)}."
        )


@cache
def _validator(schema: str) -> Draft202012Validator:
    text = resources.files("conformance.report").joinpath(f"schema/{schema}.schema.json").read_text("utf-8")
    # An explicit empty registry: the default one would fetch a foreign $ref over the network.
    return Draft202012Validator(json.loads(text), registry=Registry())
