"""Write the table of checks and remedies into docs/vendor.md: python docs/remedies.py"""

from pathlib import Path

from conformance.spec import load_checks

GUIDE = Path(__file__).with_name("vendor.md")
BEGIN, END = "<!-- from checks.toml, by docs/remedies.py -->\n", "<!-- end -->\n"
TITLES = {
    "preflight": "In the preflight",
    "perf": "In performance and accuracy runs",
    "accuracy": "In accuracy runs alone",
}


def tables() -> str:
    """Every check of the suite with what to do when it does not pass.

    Returns:
        Markdown: one table for each kind of run; a check stands in the first that makes it.
    """
    lines, told = [], set()
    for kind, title in TITLES.items():
        lines += [
            "",
            f"### {title}",
            "",
            "| check | what holds when it passes | who acts | what to do |",
            "|---|---|---|---|",
        ]
        for check in load_checks().values():
            if kind in check.applies and check.id not in told:
                told.add(check.id)
                cells = (f"`{check.id}`", check.title, f"{check.owner}, {check.severity}", check.remedy)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n\n"


def updated(guide: str) -> str:
    """The guide with today's tables.

    Args:
        guide: Its text, with the two marks.

    Returns:
        The text.
    """
    head, rest = guide.split(BEGIN)
    return head + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    GUIDE.write_text(updated(GUIDE.read_text("utf-8")), encoding="utf-8")
