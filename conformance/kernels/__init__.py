"""The kernels that InternEvo imports: the platform's own where they import, the suite's stand-ins where not."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from dataclasses import dataclass
from types import ModuleType

# Import root -> distribution that provides it natively.
PACKAGES = {
    "apex": "apex",
    "flash_attn": "flash-attn",
    "fused_dense_lib": "fused-dense-lib",
    "rotary_emb": "rotary-emb",
    "torch_scatter": "torch-scatter",
}


@dataclass(frozen=True)
class KernelSource:
    """Where one importable kernel module came from.

    Args:
        module: Dotted module name that InternEvo imports.
        provider: "native" (an installed package) or "stand-in" (this suite).
        version: Version of the provider.
    """

    module: str
    provider: str
    version: str


def install() -> tuple[KernelSource, ...]:
    """Make every kernel module importable that InternEvo imports.

    A package is taken whole or replaced whole, so that no mixture of native and stand-in kernels arises inside it.
    Must run before InternEvo is imported.

    Returns:
        One entry per module, sorted by name.
    """
    from conformance import __version__
    from conformance.kernels.standins import MODULES

    sources = []
    for package, distribution in PACKAGES.items():
        names = [name for name in MODULES if name.split(".")[0] == package]
        if not names:  # nothing that this platform's PyTorch could stand in with, and InternEvo does without
            continue
        native = _native_version(package, distribution)
        if native is None:
            _register({name: MODULES[name] for name in names})
        provider, version = ("stand-in", __version__) if native is None else ("native", native)
        sources += [KernelSource(name, provider, version) for name in names]
    return tuple(sorted(sources, key=lambda source: source.module))


def _native_version(package: str, distribution: str) -> str | None:
    try:
        importlib.import_module(package)
    except ImportError:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _register(wanted: dict[str, dict[str, object]]) -> None:
    for name, attributes in wanted.items():
        parent = ""
        for part in name.split("."):
            path = f"{parent}.{part}" if parent else part
            if path not in sys.modules:
                module = ModuleType(path, "Stand-in of the conformance suite.")
                module.__path__ = []
                sys.modules[path] = module
                if parent:
                    setattr(sys.modules[parent], part, module)
            parent = path
        vars(sys.modules[name]).update(attributes)
