"""The model card of an exported student, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from kd.evaluate.loaded_run import LoadedRun, data_name
from kd.export.formats import INPUT, Format
from kd.files import relative
from kd.models.cost import size_of
from kd.run_folder.layout import FORMAT, versions
from kd.run_folder.load import Preparation, preparation_of
from kd.run_folder.summary import names_in
from kd.run_folder.text import percent

LOCAL = ("root", "download")  # keys of a data node that the card omits


def describe(loaded: LoadedRun, network: nn.Module, exporter: Format, details: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``card.json``; ``details`` are the values that the export itself measured or was given."""
    summary = loaded.summary
    student, teacher, data = summary["student"], summary["teacher"], summary["data"]
    config = {key: value for key, value in data["config"].items() if key not in LOCAL}
    counts = {part: data[part] for part in ("train", "val", "test", "sha256") if part in data}
    of_teacher = ("name", "parameters", "macs", "accuracy", "sha256")
    return {
        "format_version": FORMAT,
        **{key: details[key] for key in ("file", "format", "bytes", "sha256")},
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": ["batch", *data["shape"]],
            "range": [0, 1],
            "preparation": (prepared := preparation_of(data)) and prepared._asdict(),
            "normalisation": {"inside": exporter.graph, **{key: student.get(key) for key in ("mean", "std", "size")}},
        },
        "output": {
            "name": details["output"],
            "dtype": "float32",
            "shape": ["batch", data["classes"]],
            "classes": loaded.names if names_in(summary) or loaded.data_name == data_name(config) else [],
        },
        "student": {
            **{key: student[key] for key in ("name", "config", "classifier") if key in student},
            **size_of(network, list(data["shape"])),
        },
        "teacher": teacher and {key: teacher[key] for key in of_teacher if key in teacher},
        "objective": summary["objective"],
        "data": {"name": data_name(config), "config": config, **counts},
        **{key: summary[key] for key in ("seed", "training", "metrics")},
        **{key: details[key] for key in ("check", "latency", "int8", "license")},
        "versions": {**versions(), **exporter.versions()},
    }


def print_card(card: Mapping[str, Any], folder: Path, files: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Prints the result of an export, with the messages about the data that it was checked on."""
    console = Console(highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"data: {note}", markup=False)
    console.print(checked(card))
    console.print(f"{card['file']}: {card['bytes']:,} bytes, {speed(card['latency'])}")
    if int8 := card["int8"]:
        console.print(f"{int8['file']}: {int8['bytes']:,} bytes, {speed(int8['latency'])}")
        before, after = (percent(int8["test"][name]["acc"]) for name in ("float", "int8"))
        console.print(f"test accuracy: float {before}, int8 ({int8['kind']}) {after}")
    console.print(f"written: {relative(folder)}: {', '.join(files)}")


def checked(card: Mapping[str, Any]) -> str:
    """The comparison of the file with PyTorch, in one sentence."""
    check, output = card["check"], card["output"]["name"]
    sizes = ", ".join(map(str, check["batches"]))
    return (
        f"checked on {check['images']} {check['part']} images of {check['data']} in batches of {sizes}: largest "
        f"difference from PyTorch {check['largest_difference']:.2g} (limit {check['limit']:g}; the {output} "
        f"themselves vary by up to {check['spread']:.2g} across images)"
    )


def speed(latency: Mapping[str, Any]) -> str:
    """The latency of batches of 1 and 64 images, with the processor."""
    times = "; ".join(f"batch {n}: {milliseconds(latency[f'batch_{n}'])} ms" for n in (1, 64))
    return f"{times} on {latency['processor']}, {threads(latency)}"


def threads(latency: Mapping[str, Any]) -> str:
    """The number of threads as text."""
    return "1 thread" if latency["threads"] == 1 else f"{latency['threads']} threads"


def milliseconds(times: Mapping[str, float]) -> str:
    """The median time and, in brackets, the 10th and 90th percentile."""
    return f"{times['median_ms']:.3g} ({times['p10_ms']:.3g} to {times['p90_ms']:.3g})"


def markdown(card: Mapping[str, Any], exporter: Format) -> str:
    """The card as Markdown, with a metadata header for model hubs."""
    licence, student, teacher = card["license"]["student"], card["student"], card["teacher"]
    head = ["tags: [image-classification, knowledge-distillation]"]
    head += [f"license: {json.dumps(licence)}"] if licence else []
    sizes = [
        (side, node["name"], f"{node['parameters']:,}", f"{node['macs']:,}")
        for side, node in (("student", student), ("teacher", teacher))
        if node
    ]
    sections = {
        "Use": _usage(card, exporter),
        "Networks": _table(("", "name", "parameters", "MACs for one image"), sizes),
        "Training": _training(card),
        "Metrics": _table(("", "test", "validation, best epoch"), _metrics(card)),
        "File": _table(("file", "bytes", "batch 1, ms", "batch 64, ms", "test accuracy"), _files(card)) + _notes(card),
        "Licences": _table(("of", "licence"), [(key, value or "not stated") for key, value in card["license"].items()]),
        "Made with": ", ".join(f"{name} {number}" for name, number in card["versions"].items()),
    }
    title = f"{student['name']}, distilled from {teacher['name']}" if teacher else student["name"]
    body = "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())
    return "\n".join(["---", *head, "---", "", f"# {title}", body])


def _usage(card: Mapping[str, Any], exporter: Format) -> str:
    shape = ", ".join(["B", *map(str, card["input"]["shape"][1:])])
    expected = f"float32 [{shape}] in [0, 1]"
    pixels, classes = card["input"]["normalisation"], card["output"]["classes"]
    inside = "is inside the file" if pixels["inside"] else "is NOT inside the file"
    config, count = json.dumps(card["student"]["config"]), card["output"]["shape"][1]
    program = exporter.usage.format(input=expected, output=card["output"]["name"], network=config)
    more = ", ... (all in card.json)" if len(classes) > 10 else ""
    names = f" for the classes {', '.join(classes[:10])}{more}" if classes else ""
    return (
        f"Input: images as {expected}, any batch size; divide 8-bit values by 255. {_prepared(card)}"
        f"Normalisation (mean {pixels['mean']}, std {pixels['std']}) {inside}. "
        f"Output: {card['output']['name']} [B, {count}]{names}.\n\n"
        f"```python\n{program}\n```"
    )


def _prepared(card: Mapping[str, Any]) -> str:
    prepared = card["input"]["preparation"]
    if prepared is None:
        return ""
    return f"For images of other sizes: {Preparation(prepared['resize'], prepared['crop'])}. "


def _training(card: Mapping[str, Any]) -> str:
    data, training = card["data"], card["training"]
    counts = ", ".join(f"{data[part]:,} {part}" for part in ("train", "val", "test") if part in data)
    chosen = "the TEST set (data.val=test)" if data["config"].get("val") == "test" else "validation images"
    lines = [
        f"- data: {data['name']}{f', {counts} images' if counts else ''}; the best epoch was chosen on {chosen}",
        *(f"- objective: {line}" for line in card["objective"]["terms"]),
        f"- {training['epochs']} epochs, {training['steps']:,} steps, "
        f"{training['seconds']:,.0f} s, seed {card['seed']}",
    ]
    if card["student"].get("classifier") == "untrained":
        lines.append(
            "- its classifier is NOT trained: accuracies are those of a k-NN classifier on the features before it"
        )
    return "\n".join(lines)


def _metrics(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A row for each score of the summary, including the teacher's."""
    test, best = card["metrics"]["test"] or {}, card["metrics"]["best"]
    rows = []
    for key, value in test.items():
        side, _, name = key.rpartition("_")
        held_out = best.get(f"{side or 'val'}/{name}")
        rows.append((key.replace("_", " "), f"{value:.4f}", "" if held_out is None else f"{held_out:.4f}"))
    return rows


def _files(card: Mapping[str, Any]) -> list[tuple[str, ...]]:
    int8 = card["int8"]
    unquantised = int8["test"]["float"] if int8 else card["metrics"]["test"] or {}
    rows = [(card, unquantised), *([(int8, int8["test"]["int8"])] if int8 else [])]
    return [
        (
            file["file"],
            f"{file['bytes']:,}",
            *(milliseconds(file["latency"][f"batch_{n}"]) for n in (1, 64)),
            percent(scores["acc"]) if "acc" in scores else "not measured",
        )
        for file, scores in rows
    ]


def _notes(card: Mapping[str, Any]) -> str:
    latency, int8 = card["latency"], card["int8"]
    lines = [
        f"Median time with 10th and 90th percentile in brackets, on {latency['processor']}, {threads(latency)}.",
        checked(card)[0].upper() + checked(card)[1:] + ".",
        f"sha256 of {card['file']}: `{card['sha256']}`.",
    ]
    if int8:
        source = int8["calibration"]
        calibration = f", calibrated on {source['images']} {source['part']} images" if source else ""
        lines.append(f"{int8['file']}: {int8['kind']} quantisation{calibration}; sha256 `{int8['sha256']}`.")
    return "\n\n" + "\n\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
