"""``kd-report``: compares run folders in a table, verdicts and one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as RichTable

from kd.files import relative, write_text
from kd.report import tables
from kd.report.page import TITLE, render
from kd.report.study import Study, commands, read_study
from kd.report.text_table import Table, escaped
from kd.train.console import console_for

__all__ = ["Report", "write"]

PAGE, MARKDOWN, RESULTS = "report.html", "report.md", "results.csv"


@dataclass(frozen=True)
class Report:
    """The result of :func:`write`; the files are in ``out``."""

    study: Study
    out: Path

    @property
    def verdicts(self) -> list[str]:
        """One sentence per method."""
        return [gain.sentence for gain in self.study.gains]

    def table(self) -> RichTable:
        """The main table for the terminal."""
        return self._main().rich()

    def markdown(self) -> str:
        """The main table and the verdicts, for TensorBoard's text tab."""
        return "\n\n".join([self._main().markdown(), *(f"- {escaped(line)}" for line in self.verdicts)]) + "\n"

    def print(self) -> None:
        """Prints the main table, the verdicts and the path of the page."""
        console = console_for(self._main().rich(notes=False))
        console.print(self.table())
        for verdict in self.verdicts:
            console.print(verdict)
        if self.study.excluded:
            console.print(f"not counted, see {PAGE}: {', '.join(run.name for run in self.study.excluded)}")
        console.print(f"report: {relative(self.out / PAGE)}")

    def _main(self) -> Table:
        return tables.main(self.study)


def write(runs: Path, out: Path) -> Report:
    """Reads every run folder below ``runs`` and writes ``report.html``, ``report.md`` and ``results.csv`` into ``out``.

    Args:
        runs: a folder that contains run folders, at any depth.
        out: the output folder; created if absent.

    Raises:
        InputError: no finished run, or runs on different data.
    """
    report = Report(read_study(runs), out)
    page = render(report.study)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / RESULTS, tables.results(report.study))
    write_text(out / MARKDOWN, _text(report))
    write_text(out / PAGE, page)
    return report


def _text(report: Report) -> str:
    study = report.study
    further = [tables.verdict(study)] if study.gains else []
    further += [tables.heat(study, sweep) for sweep in study.sweeps]
    further += [tables.agreement(study), tables.cost(study)]
    further += [tables.excluded(study)] if study.excluded else []
    parts = [f"# {TITLE}", report.markdown().rstrip()]
    parts += [f"## {table.title}\n\n{table.markdown()}" for table in further]
    blocks = [f"{label}:\n\n```bash\n" + "\n".join(lines) + "\n```" for label, lines in commands(study)]
    return "\n\n".join([*parts, "## Commands", *blocks]) + "\n"
