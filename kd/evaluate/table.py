"""What an evaluation says on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from kd.evaluate.measure import BINS
from kd.files import relative
from kd.run_folder.text import number, percent
from kd.train.console import console_for


def show(result: Mapping[str, Any], folder: Path, file: str) -> None:
    """Prints the table: the measures, the classes the student knows least, and what it takes for what."""
    about, metrics = result["data"], result["metrics"]
    where = f"{about['images']:,} images of {about['name']} ({about['part']})"
    table = Table(title=f"{relative(Path(result['run']))} on {where}", title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column(f"student {result['student']}", justify="right")
    with_teacher = result["teacher"]["measured"]
    if with_teacher:
        table.add_column(f"teacher {result['teacher']['name']}", justify="right")
    for key, (label, form) in MEASURES.items():
        if key in metrics:
            own = f"teacher_{key}"
            table.add_row(label, form(metrics[key]), *([form(metrics[own]) if own in metrics else ""] * with_teacher))
    console = console_for(table)
    console.print(table)
    for note in about["notes"]:
        console.print(f"data: {note}")
    if result["teacher"]["name"] and not with_teacher:
        console.print(f"teacher {result['teacher']['name']} not measured: {result['teacher']['about']}")
    if about["chosen_on_test"]:
        console.print("the run chose its best epoch on the TEST set (data.val=test)")
    for line in weakest(result):
        console.print(line)
    console.print(f"written: {relative(folder / file)}, reliability.png, confusion.png")


def weakest(result: Mapping[str, Any], most: int = 5) -> list[str]:
    """The classes with the lowest accuracy and the commonest mistakes, a line each."""
    known = [own for own in result["classes"] if own["acc"] is not None]
    low = sorted(known, key=lambda own: own["acc"])[:most]
    names = [own["name"] for own in result["classes"]]
    wrong = [
        (count, f"{names[i]} as {names[j]} ({count})")
        for i, row in enumerate(result["confusion"])
        for j, count in enumerate(row)
        if i != j and count
    ]
    lines = ["lowest accuracy: " + ", ".join(f"{own['name']} {percent(own['acc'])}" for own in low)]
    if wrong:
        commonest = sorted(wrong, key=lambda pair: -pair[0])[:most]
        lines.append("most often taken: " + ", ".join(text for _, text in commonest))
    return lines


MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "acc": ("top-1 accuracy", percent),
    "top5": ("top-5 accuracy", percent),
    "nll": ("NLL, nats", number),
    "brier": ("Brier score, 0 to 2", number),
    "ece": (f"ECE, {BINS} bins", percent),
    "agreement": ("agreement with the teacher", percent),
    "kl": ("KL(teacher || student), nats", number),
}
