"""The card of an exported student: what it is, what it was measured to be, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from kd.evaluate.loaded_run import Restored, data_name
from kd.export.formats import INPUT, Format
from kd.files import relative
from kd.models.cost import size_of
from kd.run_folder.layout import FORMAT, versions
from kd.run_folder.load import preparation_of
from kd.run_folder.summary import names_in

PLACES = ("root", "download")  # of a data node: no business of who gets the card


def describe(found: Restored, network: nn.Module, made: Format, about: Mapping[str, Any]) -> dict[str, Any]:
    """All that ``card.json`` says; ``about`` is what the export itself found."""
    summary = found.summary
    student, teacher, data = summary["student"], summary["teacher"], summary["data"]
    config = {key: value for key, value in data["config"].items() if key not in PLACES}
    counts = {part: data[part] for part in ("train", "val", "test", "sha256") if part in data}
    told = ("name", "parameters", "macs", "accuracy", "sha256")
    return {
        "format_version": FORMAT,
        **{key: about[key] for key in ("file", "format", "bytes", "sha256")},
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": ["batch", *data["shape"]],
            "range": [0, 1],
            "preparation": (prepared := preparation_of(data)) and prepared._asdict(),
            "normalisation": {"inside": made.graph, **{key: student.get(key) for key in ("mean", "std", "size")}},
        },
        "output": {
            "name": about["output"],
            "dtype": "float32",
            "shape": ["batch", data["classes"]],
            "classes": found.names if names_in(summary) or found.data_name == data_name(config) else [],
        },
        "student": {
            **{key: student[key] for key in ("name", "config", "classifier") if key in student},
            **size_of(network, list(data["shape"])),
        },
        "teacher": teacher and {key: teacher[key] for key in told if key in teacher},
        "objective": summary["objective"],
        "data": {"name": data_name(config), "config": config, **counts},
        **{key: summary[key] for key in ("seed", "training", "metrics")},
        **{key: about[key] for key in ("check", "latency", "int8", "license")},
        "versions": {**versions(), **made.versions()},
    }


def tell(card: Mapping[str, Any], folder: Path, files: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Says on the terminal how the export went, and what there is to say of the data it was checked on."""
    console = Console(highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"data: {note}", markup=False)
    console.print(checked(card))
    console.print(f"{card['file']}: {card['bytes']:,} bytes, {speed(card['latency'])}")
    if about := card["int8"]:
        console.print(f"{about['file']}: {about['bytes']:,} bytes, {speed(about['latency'])}")
        plain, int8 = (percent(about["test"][name]["acc"]) for name in ("float", "int8"))
        console.print(f"test accuracy: float {plain}, int8 ({about['kind']}) {int8}")
    console.print(f"written: {relative(folder)}: {', '.join(files)}")


def checked(card: Mapping[str, Any]) -> str:
    """How the file was compared with PyTorch, in a sentence."""
    check, output = card["check"], card["output"]["name"]
    sizes = ", ".join(map(str, check["batches"]))
    return (
        f"checked on {check['images']} {check['part']} images of {check['data']} in batches of {sizes}: largest "
        f"difference from PyTorch {check['largest_difference']:.2g} (limit {check['limit']:g}; the {output} "
        f"themselves differ by up to {check['spread']:.2g} from image to image)"
    )


def speed(about: Mapping[str, Any]) -> str:
    """How long a batch of 1 and of 64 take, and on what."""
    times = "; ".join(f"batch {n}: {milliseconds(about[f'batch_{n}'])} ms" for n in (1, 64))
    return f"{times} on {about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)}"


def milliseconds(about: Mapping[str, float]) -> str:
    """The median time and, in brackets, its tenth and ninetieth percentile."""
    return f"{about['median_ms']:.3g} ({about['p10_ms']:.3g} to {about['p90_ms']:.3g})"


def percent(share: float | None) -> str:
    """A share of 1 in per cent."""
    return "-" if share is None else f"{100 * share:.2f} %"
