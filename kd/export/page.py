"""The card for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kd.export.card import checked, milliseconds, percent
from kd.export.formats import Format
from kd.run_folder.load import Preparation


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
