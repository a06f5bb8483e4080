"""Would this cluster train? One test for each check; what is measured, and how, stands in conformance/preflight."""

import pytest

from conformance.checks.finding import Result
from conformance.spec import load_checks

CHECKS = [check for check in load_checks().values() if "preflight" in check.applies]

SAID = set()


@pytest.mark.parametrize("check", CHECKS, ids=[check.id for check in CHECKS])
def test_preflight(preflight, check):
    if isinstance(preflight, str):  # why nothing was measured: said once, not once for every check
        if preflight in SAID:
            pytest.skip("the preflight could not be made")
        SAID.add(preflight)
        pytest.fail(preflight, pytrace=False)
    finding = preflight.get(check.id)
    if finding is None:
        pytest.fail(f"{check.id}: the check was not made.", pytrace=False)
    told = f"{check.title}: {finding.message} {finding.next_step or check.remedy}"
    if finding.result is Result.SKIP:
        pytest.skip(finding.message)
    if finding.result is not Result.PASS and check.severity == "advisory":
        pytest.xfail(f"advisory: {told}")
    if finding.result is not Result.PASS:
        pytest.fail(told, pytrace=False)
