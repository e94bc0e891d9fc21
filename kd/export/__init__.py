"""``kd-export``: exports a run's student to a file that runs without kd, verified on real images, with a model card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.errors import InputError
from kd.evaluate.loaded_run import LoadedRun, load_run
from kd.export import int8 as integers
from kd.export.card import describe, markdown, print_card
from kd.export.check import quantise, write_checked
from kd.export.formats import Format, format_of
from kd.run_folder.summary import require

CARDS = ("card.json", "card.md")
REQUIRED = (
    *("objective.terms", "metrics.best", "metrics.test"),
    *("training.epochs", "training.steps", "training.seconds"),
)


def export(
    run: str,
    format: str = "onnx",
    data: dict[str, Any] = {},  # noqa: B006 (never changed; Hydra shows it)
    softmax: bool = False,
    int8: str = "false",
    out: str | None = None,
    overwrite: bool = False,
    license: str | None = None,
    data_license: str | None = None,
    teacher_license: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Writes a run's student with its normalisation inside, for float32 images [B, C, H, W] in [0, 1].

    The file is kept only if its outputs equal PyTorch's to 1e-4. ``card.md`` and ``card.json`` describe it.

    Args:
        run: a run folder; ``data`` and ``trust`` are as in :func:`kd.evaluate.evaluate`.
        format: ``onnx``, ``torch_export``, ``torchscript``, or ``safetensors`` (weights only, without ``softmax``).
        softmax: whether to output probabilities instead of logits.
        int8: ``dynamic`` or ``static`` (or ``true``) adds an 8-bit ONNX file and evaluates it.
        out: the output folder; ``RUN/export/<format>`` if None. ``overwrite`` replaces existing files.
        license: the student's, for the card, like ``data_license`` and ``teacher_license``.

    Returns:
        The content of ``card.json``; docs/export.md describes its keys.

    Raises:
        InputError: options that do not work together, or a file whose outputs differ from PyTorch's.
    """
    exporter, kind = format_of(format, softmax), integers.kind_of(int8, format)
    files = [exporter.file, *([integers.FILE] if kind else []), *CARDS]
    target = _target(Path(out) if out else Path(run) / "export" / format, files, overwrite)
    loaded = load_run(run, data, None, trust)
    licences = {"student": license, "data": data_license, "teacher": teacher_license}
    with _staging(target, files) as folder, torch.no_grad():
        card = _write(loaded, exporter, softmax, kind, folder, {"format": format, "license": licences})
    print_card(card, target, files, loaded.notes)
    return card


@contextmanager
def _staging(target: Path, files: list[str]) -> Iterator[Path]:
    """A temporary folder whose ``files`` are moved to ``target`` at the end of the block, unless it raises.

    It is created in the nearest existing parent of ``target``, on the same disk, so that files can be moved.
    """
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        temporary = tempfile.TemporaryDirectory(dir=parent, prefix=".kd-export-")
    except OSError as error:
        raise InputError(f"out={target} cannot be created: {parent} is not a writable folder") from error
    with temporary:
        folder = Path(temporary.name)
        yield folder
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.replace(folder / file, target / file)


def _write(
    loaded: LoadedRun, exporter: Format, softmax: bool, kind: str | None, folder: Path, details: dict[str, Any]
) -> dict[str, Any]:
    """Writes the file, the 8-bit file and the cards; returns the content of ``card.json``."""
    require(loaded.summary, loaded.folder, *REQUIRED)
    network = loaded.student.requires_grad_(False).float()
    if softmax:
        network = nn.Sequential(network, nn.Softmax(dim=1)).eval()
    path = folder / exporter.file
    details |= write_checked(network, exporter, loaded, "probabilities" if softmax else "logits", path)
    details["int8"] = quantise(kind, path, loaded) if kind else None
    card = describe(loaded, network, exporter, details)
    (folder / CARDS[0]).write_text(json.dumps(card, indent=2, allow_nan=False) + "\n")
    (folder / CARDS[1]).write_text(markdown(card, exporter))
    return card


def _target(target: Path, files: list[str], overwrite: bool) -> Path:
    """The output folder, unless it contains one of the files already."""
    if target.exists() and not target.is_dir():
        raise InputError(f"out={target} is not a folder")
    present = [file for file in files if (target / file).exists()]
    if present and not overwrite:
        raise InputError(f"{target / present[0]} exists; set overwrite=true to replace it, or another out=FOLDER")
    return target
