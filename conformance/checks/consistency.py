"""The relations that the lines of an honest log obey; a figure that was changed by hand breaks at least one.

Each relation follows from how InternEvo computes the line. Its tolerance is the rounding of what is printed, and the
time between two readings of the clock in one line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conformance.checks import identity, learning, timing
from conformance.checks.finding import Finding
from conformance.checks.subject import Subject

RELATIONS: tuple[Callable[[Subject], Finding], ...] = (
    identity.readable,
    identity.steps_complete,
    timing.clock,
    identity.head_matches,
    identity.elements,
    timing.flops,
    identity.tokens,
    timing.step_time,
    timing.speeds,
    learning.learning_rate,
    learning.loss,
    learning.perplexity,
    learning.data_types,
    identity.packing,
    learning.loss_scale,
    learning.ranges,
    learning.initial_loss,
    identity.overlap,
)


def check_consistency(subject: Subject) -> list[Finding]:
    """Test every relation.

    Args:
        subject: The run.

    Returns:
        One finding for each relation, SKIP where the log does not carry what it needs.
    """
    with np.errstate(all="ignore"):
        return [relation(subject) for relation in RELATIONS]
