"""What devices are known to reach in a preflight: figures with their source, from expected.toml."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def known_ceiling(device: str | None) -> float | None:
    """What a model of device is known to reach in a large bf16 matrix product: the ceiling of its training, too.

    Args:
        device: Model name; None where it is not known.

    Returns:
        TFLOPS; None where no figure is known.
    """
    return next(
        (float(f["value"]) for f in load_expected() if f["device"] == device and f["measurement"] == "gemm-square"),
        None,
    )


@cache
def load_expected() -> Sequence[dict[str, Any]]:
    """Read the figures.

    Returns:
        One table for each device and measurement.
    """
    text = resources.files("conformance.spec").joinpath("expected.toml").read_text("utf-8")
    figures: list[dict[str, Any]] = tomllib.loads(text)["figure"]
    return figures
