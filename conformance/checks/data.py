"""Which data was it? A loss counts only with the data set that it was reached on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from conformance.checks.finding import Finding, Result
from conformance.data import Fingerprint
from conformance.errors import ConformanceError
from conformance.internevo.config import MIN_DOCUMENT_TOKENS
from conformance.internevo.log import LogHead
from conformance.plan import Plan

AGAIN = "Prepare the data with `conformance data prepare`, look at it with `conformance data check`, and run again."
# Clocks of a run's nodes may differ by seconds; a log of another run is hours away.
CLOCK_TOLERANCE = timedelta(minutes=2)


def recorded(plan: Plan, values: Sequence[Mapping[str, Any] | None]) -> tuple[Finding, Fingerprint | None]:
    """Whether every attempt recorded a sound data set, the same one each time.

    Args:
        plan: The plan.
        values: environment/data.json of each attempt; None where there is none.

    Returns:
        The finding of check data-recorded, and the fingerprint where it is PASS.
    """
    try:
        found = [Fingerprint.from_json(value) for value in values]
    except ConformanceError as error:
        return _recorded(f"{error.message if all(values) else 'No fingerprint of the data was recorded.'}"), None
    first = found[0]
    faults = []
    if len({one.digest for one in found}) > 1:
        faults.append("the attempts trained on different data")
    if first.repeated:
        faults.append(f"{', '.join(first.repeated[:5])} has the very bytes of a shard before it")
    if first.vocabulary != plan.model.vocab_size:
        faults.append(f"its tokenizer has {first.vocabulary} entries, the model {plan.model.vocab_size}")
    if first.tokens <= 0:
        faults.append("it holds no tokens")
    if faults:
        return _recorded(f"Data set {first.digest[:16]}: {'; '.join(faults)}."), None
    message = (
        f"Data set {first.digest[:16]}: {first.tokens:,} tokens, {first.documents:,} documents, mode {first.mode}."
    )
    return Finding("data-recorded", Result.PASS, message, first.digest, evidence="environment/data.json"), first


def _recorded(message: str) -> Finding:
    return Finding("data-recorded", Result.FAIL, message, evidence="environment/data.json", next_step=AGAIN)


def pinned(plan: Plan, found: Fingerprint, pin: str | None) -> Finding:
    """Whether the data set is the one that the loss target was set for.

    Args:
        plan: The plan.
        found: Fingerprint of the data set.
        pin: Digest that it must have, by the spec or a lab's policy; None where neither names one.

    Returns:
        The finding of check data-pinned: without a pin ERROR for an official workload, SKIP for a rehearsal.
    """
    name = plan.workload.data
    base = Finding(
        "data-pinned",
        Result.PASS,
        f"The data are {name} as pinned.",
        found.digest,
        limit=pin,
        evidence="environment/data.json",
    )
    if pin is None:
        result = Result.ERROR if plan.workload.official else Result.SKIP
        message = f"The data are not pinned: nobody says which digest {name} has."
        return replace(base, result=result, message=message, next_step="A lab pins the digest in its policy.")
    if found.digest != pin:
        message = f"The data are not {name} as pinned: digest {found.digest[:16]}, pinned {pin[:16]}."
        return replace(base, result=Result.FAIL, message=message, next_step=AGAIN)
    return base


def loaded(plan: Plan, found: Fingerprint, heads: Sequence[LogHead], types: Collection[str]) -> Finding:
    """Whether InternEvo's own log says that it loaded the data set that was recorded, whole.

    InternEvo logs how many data sets (shards), packs and dropped short documents it found. A shard of T tokens makes
    floor(T / packed length) packs, and a dropped document has fewer than 50 tokens.

    Args:
        plan: The plan.
        found: Fingerprint of the data set.
        heads: Head of each attempt's log.
        types: Types of data that the log counts tokens of.

    Returns:
        The finding of check data-loaded.
    """
    packed = plan.micro_bsz * plan.model.seq_len
    tokens = [shard.tokens for shard in found.shards]
    most = _fewest_packs(tokens, packed, 0)
    folders = {shard.name.split("/", 1)[0] for shard in found.shards}
    faults = []
    for head in heads:
        if head.data is None:
            faults.append("the log does not say that any data were loaded: InternEvo's random tokens have no such line")
            continue
        shards, packs, dropped = head.data
        least = _fewest_packs(tokens, packed, dropped * (MIN_DOCUMENT_TOKENS - 1))
        if not least <= packs <= most:
            faults.append(f"it found {packs} packs of {packed} tokens, expected {least} to {most}")
        if shards > len(found.shards) or (shards < len(found.shards) and not dropped):
            faults.append(f"it found {shards} shards of {len(found.shards)}")
    if set(types) != folders:
        faults.append(f"it counts tokens of {sorted(types)}, the data have {sorted(folders)}")
    told = f"{most} packs in {len(found.shards)} shards of {', '.join(sorted(folders))}"
    return Finding(
        "data-loaded",
        Result.FAIL if faults else Result.PASS,
        f"By its log InternEvo did not load the recorded data: {'; '.join(dict.fromkeys(faults))}."
        if faults
        else f"By its log InternEvo loaded the recorded data: {told}.",
        float(len(faults)),
        "faults",
        0.0,
        "InternEvo's own count at its start",
        next_step=AGAIN if faults else "",
    )


def _fewest_packs(tokens: Sequence[int], packed: int, dropped: int) -> int:
    """Packs that shards make at least when so many tokens of theirs are dropped, wherever those lie."""
    packs = sum(each // packed for each in tokens)
    # The first pack that a shard loses takes what it has beyond whole packs, and one token more.
    for cost in sorted(each % packed + 1 for each in tokens):
        if cost > dropped:
            return packs
        packs, dropped = packs - 1, dropped - cost
    return max(0, packs - dropped // packed)


def in_time(spans: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], npt.NDArray[np.datetime64]]]) -> Finding:
    """Whether each log was written while its attempt ran: a copied log was not.

    Args:
        spans: For each attempt environment/run.json, the logging rank's record, and the times of its steps, which are
            the rank's local time without zone.

    Returns:
        The finding of check log-in-time.
    """
    faults = []
    for number, (record, rank, times) in enumerate(spans):
        known = times[~np.isnat(times)]
        offset = rank.get("utc_offset_seconds")
        if not len(known) or not isinstance(offset, int):
            faults.append(f"attempt {number + 1} tells no times")
            continue
        zone = timezone(timedelta(seconds=offset))
        first, last = (moment.item().replace(tzinfo=zone) for moment in (known.min(), known.max()))
        begun, ended = moment(record.get("started")), moment(record.get("ended"))
        if begun is None or first < begun - CLOCK_TOLERANCE:
            faults.append(f"attempt {number + 1} began at {begun}, its first step is of {first}")
        if ended is not None and last > ended + CLOCK_TOLERANCE:
            faults.append(f"attempt {number + 1} ended at {ended}, its last step is of {last}")
    return Finding(
        "log-in-time",
        Result.FAIL if faults else Result.PASS,
        f"The log was not written by this run: {'; '.join(faults)}."
        if faults
        else "The log was written while the run went on.",
        float(len(faults)),
        "attempts",
        0.0,
        "environment/run.json",
        next_step="Give the log that the run wrote, in its own run directory." if faults else "",
    )


def moment(text: object) -> datetime | None:
    """Read a time of a run's records.

    Args:
        text: ISO 8601 with its zone; Python 3.10 reads no Z by itself.

    Returns:
        The time in UTC; None where it is none, or has no zone.
    """
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return None if found.tzinfo is None else found.astimezone(timezone.utc)
    except (ValueError, OverflowError):  # the first and the last day of the calendar exist in one time zone only
        return None
