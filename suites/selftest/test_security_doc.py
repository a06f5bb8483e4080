"""The table of attacks in docs/security.md names tests that exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "security.md"


def test_every_attack_in_the_table_has_its_test():
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and ".py" in line]
    assert len(rows) >= 30
    for row in rows:
        path = ""
        for name, function in re.findall(r"([\w/]+\.py)?(?:::(\w+))?", row.rsplit("|", 2)[1]):
            path = name or path
            if not path:
                continue
            source = (HERE / path).read_text()
            assert not function or f"def {function}(" in source, f"{path}::{function}"
