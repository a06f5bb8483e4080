"""Every fault that the suite proves itself with; a check that none of them turns red fails the build.

A new check gets its fault here: a Fault that names the check and what is injected into which good bench. Where none of
the benches shows the check green, the module that holds the faults adds one.
"""

from __future__ import annotations

from conformance.selftest import cluster, data, figures, run

FAULTS = (*run.FAULTS, *figures.FAULTS, *data.FAULTS, *cluster.FAULTS)
