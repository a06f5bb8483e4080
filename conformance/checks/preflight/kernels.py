"""The kernels that InternEvo needs, held against their fp32 reference, and one whole training step."""

from __future__ import annotations

import math

from conformance.checks.finding import Finding
from conformance.checks.preflight.records import (
    ROUNDOFF,
    Preflight,
    Record,
    Unmeasured,
    every,
    faultless,
    made,
    number,
)

# How many roundings a result may have gone through: one for a result that is computed in fp32 and rounded once, more
# where intermediate values are kept in the dtype (attention probabilities, gradients through them) or are sums.
ROUNDINGS = {
    ("attention", "out"): 4,
    ("attention", "dq"): 8,
    ("attention", "dk"): 8,
    ("attention", "dv"): 6,
    ("rotary", "out"): 3,
    ("rotary", "dx"): 3,
    ("rms-norm", "out"): 3,
    ("rms-norm", "dx"): 5,
    ("rms-norm", "dweight"): 5,
    ("linear", "out"): 3,
    ("linear", "dx"): 3,
    ("linear", "dweight"): 3,
    ("embedding", "out"): 1,
    ("embedding", "dweight"): 4,
    # fp32: exponentials and sums of thousands of terms.
    ("cross-entropy", "loss"): 256,
    ("cross-entropy", "dlogits"): 256,
    # An update of 1e-4 is the difference of parameters two hundred times as large.
    ("adamw", "update"): 2048,
    ("adamw", "first"): 16,
    ("adamw", "second"): 16,
    ("grad-norm", "norm"): 1024,
    ("grad-norm", "clipped"): 1024,
    ("scatter", "out"): 256,
}
# What the case of a cross-entropy is called whose vocabulary lies on several ranks, as in tensor parallelism.
SPLIT = "vocabulary over"
# One row may be this many times worse than the whole, at most a quarter off; a row that was left out is off by 1.
ROW_FACTOR = 16
STEP_LOSS = 2.0**-8
STEP_NORM = 2.0**-6
TENSOR_PARALLEL_LOSS = 2.0**-10


def kernel(check: str, preflight: Preflight) -> Finding:
    """Whether a kernel agrees with its reference.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    name = check.removeprefix("kernel-")
    errors = [(p, r) for p, r in preflight.records("kernel-error") if r["kernel"] == name]
    if errors:
        faults = [f"{preflight.where(process)}: {name} cannot run: {record['problem']}" for process, record in errors]
        return made(check, False, f"{'; '.join(faults[:4])}.")
    results = _results(name, preflight)
    judged = [(process, record, *_kernel_limits(record)) for process, record in results]
    bad = [item for item in judged if not _kernel_good(*item[1:])]
    providers = sorted({record["provider"] for _, record in results})
    process, record, limit, _ = max(
        bad or judged, key=lambda item: _rank_of(number(item[1]["error"])) / (item[2] or math.inf)
    )
    told = f"{record['case']}, {record['result']}: relative error {number(record['error']):.2e}"
    if bad:
        told = (
            f"{preflight.where(process)}: {told}, worst row {record['row']} {number(record['worst_row']):.2e}, "
            f"{record['not_finite']} elements not finite; seed {record['seed']}, {len(bad)} of {len(judged)} wrong"
        )
    else:
        told = f"{len(judged)} results agree; worst is {told}"
    source = f"roundings to {record['dtype']}, {ROUNDOFF[record['dtype']]:.3g} each"
    return made(
        check,
        not bad,
        f"{told} ({', '.join(providers)}{_kernel_speed(preflight, name)}).",
        value=number(record["error"]),
        limit=limit,
        limit_source=source,
    )


def _results(name: str, preflight: Preflight) -> list[tuple[Record, Record]]:
    """A kernel's results, all of them from every rank."""
    results = every(preflight, "kernel", f"result of {name}:", lambda r: (r["case"], r["result"]), kernel=name)
    # By a device alone: what ranks make of one kernel together has the same names, and stands for none of it.
    alone = [record for process in preflight.tasks["device"] for record in process["records"]]
    measured = {r["result"] for r in alone if r["kind"] == "kernel" and r["kernel"] == name}
    absent = [result for kernel, result in ROUNDINGS if kernel == name and result not in measured]
    if absent:
        raise Unmeasured(f"no {' and no '.join(absent)} of {name} was written down")
    split = any(SPLIT in record["case"] for _, record in results)
    if name == "cross-entropy" and preflight.setup["ranks"] > 1 and not split:
        raise Unmeasured("no cross-entropy over a vocabulary that ranks share was written down")
    return results


def _kernel_limits(record: Record) -> tuple[float, float]:
    limit = ROUNDINGS[(record["kernel"], record["result"])] * ROUNDOFF[record["dtype"]]
    return limit, ROW_FACTOR * limit


def _kernel_good(record: Record, limit: float, row_limit: float) -> bool:
    # "not <=" and not ">": nan passes no limit.
    return number(record["error"]) <= limit and number(record["worst_row"]) <= row_limit and record["not_finite"] == 0


def _rank_of(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _kernel_speed(preflight: Preflight, name: str) -> str:
    speeds = [record for _, record in preflight.records("kernel-speed") if record["kernel"] == name]
    if not speeds:
        return ""
    first = speeds[0]
    rate = f", {number(first['tflops']):.3g} TFLOPS" if "tflops" in first else ""
    return f"; {first['case']}: {number(first['seconds']) * 1e3:.3g} ms{rate}"


def determinism(check: str, preflight: Preflight) -> Finding:
    """Whether kernels give the same bits twice.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    told = (record for _, record in preflight.records("kernel"))
    different = sorted({f"{r['kernel']} {r['result']}" for r in told if r["same_twice"] is not True})
    if not different:  # a difference is one, whatever else was measured; that there is none, all results must tell
        for name in dict.fromkeys(kernel for kernel, _ in ROUNDINGS):
            _results(name, preflight)
    faults = [f"Not the same twice, bit by bit: {', '.join(different)}"] if different else []
    good, source = "Every kernel gives the same bits twice", "two runs on the same inputs"
    return faultless(check, faults, good, "results", source, value=float(len(different)))


def step(check: str, preflight: Preflight) -> Finding:
    """Whether one step through InternEvo agrees with the fp32 reference.

    Args:
        check: Id of the check.
        preflight: What was measured.

    Returns:
        The finding of that check.
    """
    measured = every(preflight, "step", "training step with tensor size", lambda record: record["tensor"])
    faults = []
    for process, record in measured:
        for name, limit in (("loss", STEP_LOSS), ("grad_norm", STEP_NORM)):
            got, expected = number(record[name]), number(record[f"expected_{name}"])
            if not abs(got - expected) <= limit * abs(expected):
                faults.append(
                    f"rank {process['rank']}, tensor {record['tensor']}: {name} {got:.6g}, fp32 {expected:.6g}"
                )
    losses = {record["tensor"]: number(record["loss"]) for _, record in measured}
    if len(losses) > 1 and not max(losses.values()) - min(losses.values()) <= TENSOR_PARALLEL_LOSS * min(
        losses.values()
    ):
        faults.append("loss by tensor-parallel size: " + ", ".join(f"{t}: {loss:.6g}" for t, loss in losses.items()))
    record = measured[0][1]
    sizes = " and ".join(str(size) for size in sorted(losses))
    good = (
        f"Loss {number(record['loss']):.6g} (fp32 {number(record['expected_loss']):.6g}), gradient norm "
        f"{number(record['grad_norm']):.6g} (fp32 {number(record['expected_grad_norm']):.6g}), tensor size {sizes}"
    )
    source = "this suite: 2^-8 for the loss and 2^-6 for the gradient norm, after two layers in bf16"
    return faultless(check, faults, good, "", source, value=number(record["loss"]), limit=STEP_LOSS)
