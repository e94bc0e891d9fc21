"""The card of an exported student: what it is, what it was measured to be, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from kd.evaluate.loaded_run import Restored, data_name
from kd.export.formats import INPUT, Format
from kd.files import relative
from kd.models.cost import size_of
from kd.run_folder.layout import FORMAT, versions
from kd.run_folder.load import Preparation, preparation_of
from kd.run_folder.summary import names_in
from kd.run_folder.text import percent

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


def markdown(card: Mapping[str, Any], made: Format) -> str:
    """The card for people, with a head that model hubs read."""
    licence, student, teacher = card["license"]["student"], card["student"], card["teacher"]
    head = ["tags: [image-classification, knowledge-distillation]"]
    head += [f"license: {json.dumps(licence)}"] if licence else []
    sizes = [
        (side, about["name"], f"{about['parameters']:,}", f"{about['macs']:,}")
        for side, about in (("student", student), ("teacher", teacher))
        if about
    ]
    sections = {
        "Use": _usage(card, made),
        "Networks": _table(("", "name", "parameters", "MACs for one image"), sizes),
        "Training": _training(card),
        "Measures": _table(("", "test", "validation, best epoch"), _measures(card)),
        "File": _table(("file", "bytes", "batch 1, ms", "batch 64, ms", "test accuracy"), _files(card)) + _below(card),
        "Licences": _table(("of", "licence"), [(key, value or "not stated") for key, value in card["license"].items()]),
        "Made with": ", ".join(f"{name} {number}" for name, number in card["versions"].items()),
    }
    title = f"{student['name']}, distilled from {teacher['name']}" if teacher else student["name"]
    body = "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())
    return "\n".join(["---", *head, "---", "", f"# {title}", body])


def _usage(card: Mapping[str, Any], made: Format) -> str:
    shape = ", ".join(["B", *map(str, card["input"]["shape"][1:])])
    taken = f"float32 [{shape}] in [0, 1]"
    pixels, classes = card["input"]["normalisation"], card["output"]["classes"]
    inside = "is inside the file" if pixels["inside"] else "is NOT inside the file"
    config, count = json.dumps(card["student"]["config"]), card["output"]["shape"][1]
    program = made.usage.format(input=taken, output=card["output"]["name"], network=config)
    more = ", ... (all in card.json)" if len(classes) > 10 else ""
    named = f" for the classes {', '.join(classes[:10])}{more}" if classes else ""
    return (
        f"Images are {taken}, of any batch size; bytes are divided by 255 first. {_prepared(card)}"
        f"Normalisation (mean {pixels['mean']}, std {pixels['std']}) {inside}. "
        f"It gives {card['output']['name']} [B, {count}]{named}.\n\n"
        f"```python\n{program}\n```"
    )


def _prepared(card: Mapping[str, Any]) -> str:
    about = card["input"]["preparation"]
    if about is None:
        return ""
    return f"Of pictures of other sizes, {Preparation(about['resize'], about['crop'])}. "


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
            "- its classifier is NOT trained: accuracies are a k-NN classifier's, on what the layer before it gives"
        )
    return "\n".join(lines)


def _measures(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A row for each score of the summary, teacher's included."""
    test, best = card["metrics"]["test"] or {}, card["metrics"]["best"]
    rows = []
    for key, value in test.items():
        side, _, name = key.rpartition("_")
        held_out = best.get(f"{side or 'val'}/{name}")
        rows.append((key.replace("_", " "), f"{value:.4f}", "" if held_out is None else f"{held_out:.4f}"))
    return rows


def _files(card: Mapping[str, Any]) -> list[tuple[str, ...]]:
    about = card["int8"]
    plain = about["test"]["float"] if about else card["metrics"]["test"] or {}
    rows = [(card, plain), *([(about, about["test"]["int8"])] if about else [])]
    return [
        (
            own["file"],
            f"{own['bytes']:,}",
            *(milliseconds(own["latency"][f"batch_{n}"]) for n in (1, 64)),
            percent(scores["acc"]) if "acc" in scores else "not measured",
        )
        for own, scores in rows
    ]


def _below(card: Mapping[str, Any]) -> str:
    speed, about = card["latency"], card["int8"]
    threads = "1 thread" if speed["threads"] == 1 else f"{speed['threads']} threads"
    lines = [
        f"Median time and, in brackets, its tenth and ninetieth percentile, on {speed['processor']}, {threads}.",
        checked(card)[0].upper() + checked(card)[1:] + ".",
        f"sha256 of {card['file']}: `{card['sha256']}`.",
    ]
    if about:
        source = about["calibration"]
        how = f", calibrated on {source['images']} {source['part']} images" if source else ""
        lines.append(f"{about['file']}: {about['kind']} quantisation{how}; sha256 `{about['sha256']}`.")
    return "\n\n" + "\n\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
