"""Prints an evaluation on the terminal."""

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


def print_result(result: Mapping[str, Any], folder: Path, file: str) -> None:
    """Prints the metrics, the classes with the lowest accuracy, and the most frequent confusions."""
    data, metrics = result["data"], result["metrics"]
    images = f"{data['images']:,} images of {data['name']} ({data['part']})"
    table = Table(title=f"{relative(Path(result['run']))} on {images}", title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    table.add_column(f"student {result['student']}", justify="right")
    with_teacher = result["teacher"]["measured"]
    if with_teacher:
        table.add_column(f"teacher {result['teacher']['name']}", justify="right")
    for key, (label, form) in MEASURES.items():
        if key in metrics:
            teacher = metrics.get(f"teacher_{key}")
            cells = [form(metrics[key])] + ["" if teacher is None else form(teacher)] * with_teacher
            table.add_row(label, *cells)
    console = console_for(table)
    console.print(table)
    for note in data["notes"]:
        console.print(f"data: {note}")
    if result["teacher"]["name"] and not with_teacher:
        console.print(f"teacher {result['teacher']['name']} not evaluated: {result['teacher']['about']}")
    if data["chosen_on_test"]:
        console.print("the best epoch was chosen on the TEST set (data.val=test)")
    for line in weakest(result):
        console.print(line)
    console.print(f"written: {relative(folder / file)}, reliability.png, confusion.png")


def weakest(result: Mapping[str, Any], most: int = 5) -> list[str]:
    """One line with the classes of the lowest accuracy, and one with the most frequent confusions."""
    measured = [each for each in result["classes"] if each["acc"] is not None]
    low = sorted(measured, key=lambda each: each["acc"])[:most]
    names = [each["name"] for each in result["classes"]]
    wrong = [
        (count, f"{names[i]} as {names[j]} ({count})")
        for i, row in enumerate(result["confusion"])
        for j, count in enumerate(row)
        if i != j and count
    ]
    lines = ["lowest accuracy: " + ", ".join(f"{each['name']} {percent(each['acc'])}" for each in low)]
    if wrong:
        frequent = sorted(wrong, key=lambda pair: -pair[0])[:most]
        lines.append("most frequent confusions: " + ", ".join(text for _, text in frequent))
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
