"""``kd-report``: run folders in, a table, verdicts and one page out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as RichTable

from kd.files import relative, write_text
from kd.report import tables
from kd.report.page import render
from kd.report.study import Study, commands, study
from kd.report.text_table import Table, escaped
from kd.train.console import console_for

__all__ = ["Report", "write"]

PAGE, MARKDOWN, RESULTS = "report.html", "report.md", "results.csv"


@dataclass(frozen=True)
class Report:
    """What a report found; :func:`write` has written it to ``out``."""

    study: Study
    out: Path

    @property
    def verdicts(self) -> list[str]:
        """A sentence for each method."""
        return [gain.sentence for gain in self.study.gains]

    def table(self) -> RichTable:
        """The main table, for a terminal."""
        return self._main().rich()

    def markdown(self) -> str:
        """The main table and the verdicts, for TensorBoard's text tab."""
        return "\n\n".join([self._main().markdown(), *(f"- {escaped(line)}" for line in self.verdicts)]) + "\n"

    def say(self) -> None:
        """Prints the main table, the verdicts and where the page is."""
        console = console_for(self._main().rich(notes=False))
        console.print(self.table())
        for verdict in self.verdicts:
            console.print(verdict)
        if self.study.left:
            console.print(f"not counted, see {PAGE}: {', '.join(left.name for left in self.study.left)}")
        console.print(f"report: {relative(self.out / PAGE)}")

    def _main(self) -> Table:
        return tables.main(self.study)


def write(runs: Path, out: Path) -> Report:
    """Reads all run folders below ``runs`` and writes ``report.html``, ``report.md`` and ``results.csv`` into ``out``.

    Args:
        runs: a folder with run folders in it, at any depth.
        out: where the files go; made if absent.

    Raises:
        InputError: no finished run, or runs on different data.
    """
    report = Report(study(runs), out)
    found = report.study
    page = render(found)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / RESULTS, tables.results(found))
    write_text(out / MARKDOWN, _text(report))
    write_text(out / PAGE, page)
    return report


def _text(report: Report) -> str:
    found = report.study
    parts = ["# Did distilling help?", report.markdown().rstrip()]
    shown = [tables.verdict(found)] if found.gains else []
    shown += [tables.heat(found, grid) for grid in found.sweeps]
    shown += [tables.likeness(found), tables.cost(found)]
    shown += [tables.left_out(found)] if found.left else []
    parts += [f"## {table.title}\n\n{table.markdown()}" for table in shown]
    blocks = [f"{label}:\n\n```bash\n" + "\n".join(lines) + "\n```" for label, lines in commands(found)]
    return "\n\n".join([*parts, "## Repeat it", *blocks]) + "\n"
