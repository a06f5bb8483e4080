"""What every measurement shares: telling where it is, timing on the device, comparing with a reference."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

# Above 65504, fp16's largest number, and as large as InternEvo's initial loss scale, 2^16, makes gradients: what a
# kernel silently computes in fp16 becomes infinite.
BEYOND_FP16 = 2.0**17
# More than any last-level cache holds today.
CACHE_BYTES = 512 << 20


class Journal:
    """One process's measurements, written as they are made, so that a process which is ended has told what it did.

    Args:
        path: JSON lines; one object a measurement, and one for the beginning of each phase.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def phase(self, name: str, seconds: float | None = None, otherwise: Record | None = None) -> None:
        """Say what begins now; the last phase of a process that hangs is where it hangs.

        Args:
            name: For people.
            seconds: After so long without another line, the process is ended and begins anew; None where only the
                task has a limit.
            otherwise: The record that is then kept, by which the process that begins anew knows what to leave out.
        """
        limit = {} if seconds is None else {"seconds": seconds, "otherwise": otherwise}
        # The monotonic clock is one for all processes of a machine, and no step of NTP moves it.
        self._write({"phase": name, "at": time.monotonic(), **limit})

    def record(self, kind: str, /, **values: Any) -> None:
        """Keep one measurement.

        Args:
            kind: What was measured.
            values: What json can hold; floats that are not finite become strings, so that a judge sees them.
        """
        self._write({**{name: plain(value) for name, value in values.items()}, "kind": kind})

    def over(self, part: str) -> None:
        """Say that a part is measured to its end, so that it can be judged whatever becomes of this process.

        Args:
            part: As in checks/preflight's PARTS.
        """
        self.record("over", part=part)

    def behind(self) -> set[str]:
        """What a process before this one has measured to the end, or was ended in.

        Returns:
            Parts, as in checks/preflight's PARTS.
        """
        return {line["part"] for line in told_in(self._path) if "part" in line}

    def hung(self) -> list[str]:
        """Kernels that a process before this one was ended in.

        Returns:
            Their names, in the order of their end.
        """
        return [line["kernel"] for line in told_in(self._path) if "hung" in line]

    def _write(self, line: Record) -> None:
        add_to(self._path, line)


def add_to(path: Path, line: Record) -> None:
    """Add a line to a journal.

    Args:
        path: The journal; its last line may have been cut where a process was ended.
        line: What json can hold.
    """
    with path.open("ab+") as stream:
        stream.seek(max(0, stream.tell() - 1))
        begin = b"" if stream.read() in (b"", b"\n") else b"\n"
        stream.write(begin + json.dumps(line, allow_nan=False).encode() + b"\n")


def told_in(path: Path) -> list[Record]:
    """Read a journal.

    Args:
        path: The journal.

    Returns:
        Its lines; none where there is no such file.
    """
    lines = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # the last line of a process that was ended may be cut
            lines.append(json.loads(line))
    return lines


def plain(value: Any) -> Any:
    """A value that strict JSON holds.

    Args:
        value: Numbers, strings, lists and dictionaries of them.

    Returns:
        The same, with nan and infinities as the strings "nan", "inf" and "-inf".
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def sha256_of(path: Path) -> str:
    """Hash a file that may be large.

    Args:
        path: The file.

    Returns:
        sha256, hex; empty where it cannot be read any more.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def spread(samples: Sequence[float]) -> Record:
    """Median and spread of repeated timings.

    Args:
        samples: Seconds, at least one.

    Returns:
        ``seconds``, the median, and ``spread``, the interquartile range over the median.
    """
    ordered = sorted(samples)
    median = statistics.median(ordered)
    quarter = len(ordered) // 4
    return {"seconds": median, "spread": (ordered[-1 - quarter] - ordered[quarter]) / median, "samples": len(ordered)}


def time_on_device(
    step: Callable[[int], object], *, warmup: int, samples: int, flush: Any = None, budget_seconds: float = 5.0
) -> Record:
    """Time a step with device events.

    Args:
        step: What to time; gets the number of the repetition, to rotate its inputs by.
        warmup: Repetitions that are not timed.
        samples: Repetitions that are, the first of which only tells how many fit the budget; at least 3.
        flush: A tensor larger than the caches, rewritten before every repetition; None to leave the caches warm.
        budget_seconds: About how long all repetitions may take.

    Returns:
        As :func:`spread`.
    """
    import torch

    def queue(number: int) -> tuple[Any, Any]:
        if flush is not None:
            flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step(number)
        end.record()
        return start, end

    for number in range(warmup):
        step(number)
    torch.cuda.synchronize()
    began = time.monotonic()
    events = [queue(0)]
    torch.cuda.synchronize()
    affordable = budget_seconds / max(time.monotonic() - began, 1e-6)
    # Queued without waiting, so that the device never idles until the host has launched the next kernel.
    events += [queue(number) for number in range(1, int(min(samples, max(3, affordable))))]
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) / 1e3 for start, end in events[1:]]
    return spread(times)


def exact_products() -> None:
    """Let fp32 products of a reference be fp32 products: a driver, a variable or a framework may have chosen TF32."""
    import torch

    torch.set_float32_matmul_precision("highest")


def relative_error(measured: Any, reference: Any) -> Record:
    """How far a result is from its reference, by norm, whole and row by row.

    A norm hides one wrong row among thousands, so the worst row is measured too: its error over its own norm, or over
    a fiftieth of the typical row's where that is larger, since a row that should be zero holds rounding noise.

    Args:
        measured: Result of a kernel, (..., columns).
        reference: The same in fp32 or fp64.

    Returns:
        ``error``, ||measured - reference|| / ||reference||; ``worst_row``; ``row``, its index; ``not_finite``, how many
        elements are nan or infinite. nan where the result holds one.
    """
    import torch

    wide = reference.detach().to(torch.float64 if reference.dtype == torch.float64 else torch.float32)
    wide = wide.reshape(-1, wide.shape[-1]) if wide.dim() > 1 else wide.reshape(-1, 1)
    got = measured.detach().to(wide.dtype).reshape(wide.shape)
    norms = torch.linalg.vector_norm(wide, dim=-1)
    typical = norms.square().mean().sqrt()
    rows = torch.linalg.vector_norm(got - wide, dim=-1) / torch.maximum(norms, typical / 50)
    error = torch.linalg.vector_norm(got - wide) / torch.linalg.vector_norm(wide)
    row = int(torch.nan_to_num(rows, nan=math.inf, posinf=math.inf).argmax())
    return {
        "error": float(error),
        "worst_row": float(rows[row]) if wide.shape[-1] > 1 else float(error),
        "row": row,
        "not_finite": int((~torch.isfinite(measured)).sum()),
    }


def poison(*shapes: Sequence[int], dtype: Any) -> None:
    """Leave NaN in the memory that the allocator hands out next, so that an element nobody writes is seen.

    Args:
        shapes: Shapes of the results that are expected.
        dtype: Their dtype.
    """
    import torch

    blocks = [torch.full(tuple(shape), math.nan, dtype=dtype, device="cuda") for shape in shapes]
    torch.cuda.synchronize()
    del blocks
