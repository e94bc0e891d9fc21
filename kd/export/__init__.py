"""``kd-export``: a run's student as a file that is used without kd, checked on real images, with a card beside it."""

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
from kd.evaluate.loaded_run import Restored, restore
from kd.export import int8 as integers
from kd.export.card import describe, markdown, tell
from kd.export.check import exported, quantised
from kd.export.formats import Format, chosen
from kd.run_folder.summary import require

CARDS = ("card.json", "card.md")
SAID = (
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

    The file stays only if, read back, it answers as PyTorch does to 1e-4. ``card.md`` and ``card.json`` say what it is.

    Args:
        run: a run folder; ``data`` and ``trust`` are as for :func:`kd.evaluate.evaluate`.
        format: ``onnx``, ``torch_export``, ``torchscript``, or ``safetensors``: weights only, and so no ``softmax``.
        int8: ``dynamic`` or ``static`` (or ``true``) adds an eight-bit ONNX file, with its accuracy.
        out: the folder to write to, ``RUN/export/<format>`` if None; ``overwrite`` replaces what is there.
        license: of the student, for the card; so are ``data_license`` and ``teacher_license``.

    Returns:
        What ``card.json`` holds; its keys are in docs/export.md.

    Raises:
        InputError: what is asked cannot be done, or a file answers otherwise than PyTorch.
    """
    made, kind = chosen(format, softmax), integers.kind_of(int8, format)
    files = [made.file, *([integers.FILE] if kind else []), *CARDS]
    target = Path(out) if out else Path(run) / "export" / format
    _refuse_existing(target, files, overwrite)
    found = restore(run, data, None, trust)
    licences = {"student": license, "data": data_license, "teacher": teacher_license}
    with _kept(target, files) as held, torch.no_grad():
        about = _written(found, made, softmax, kind, held, {"format": format, "license": licences})
    tell(about, target, files, found.notes)
    return about


@contextmanager
def _kept(target: Path, files: list[str]) -> Iterator[Path]:
    """A folder to work in, whose ``files`` are moved to ``target`` in the end, unless something went wrong.

    It is made in the nearest folder above ``target`` that is there already: on the same disk, so that files can be
    moved.
    """
    above = next(parent for parent in target.absolute().parents if parent.exists())
    try:
        folder = tempfile.TemporaryDirectory(dir=above, prefix=".kd-export-")
    except OSError as error:
        raise InputError(f"out={target} cannot be made: {above} is no folder that can be written to") from error
    with folder:
        held = Path(folder.name)
        yield held
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.replace(held / file, target / file)


def _written(
    found: Restored, made: Format, softmax: bool, kind: str | None, held: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Writes file, eight-bit file and cards; answers with what ``card.json`` holds."""
    require(found.summary, found.folder, *SAID)
    network = found.student.requires_grad_(False).float()
    if softmax:
        network = nn.Sequential(network, nn.Softmax(dim=1)).eval()
    path = held / made.file
    about |= exported(network, made, found, "probabilities" if softmax else "logits", path)
    about["int8"] = quantised(kind, path, found) if kind else None
    told = describe(found, network, made, about)
    (held / CARDS[0]).write_text(json.dumps(told, indent=2, allow_nan=False) + "\n")
    (held / CARDS[1]).write_text(markdown(told, made))
    return told


def _refuse_existing(target: Path, files: list[str], overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"out={target} is no folder")
    present = [file for file in files if (target / file).exists()]
    if present and not overwrite:
        raise InputError(f"{target / present[0]} exists; overwrite=true replaces it, out=FOLDER leaves it alone")
