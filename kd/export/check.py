"""Files that are written, read back, and measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.evaluate.loaded_run import Restored, batches
from kd.evaluate.measure import answer
from kd.export import int8 as integers
from kd.export.formats import Answer, Format, read_onnx
from kd.export.timing import latency, processor

CHECKED, CALIBRATED = 128, 512
LIMIT = 1e-4
CPU = torch.device("cpu")


def exported(network: nn.Module, made: Format, found: Restored, output: str, path: Path) -> dict[str, Any]:
    """Writes the file and reads it back.

    Raises:
        InputError: it cannot be written, or does not answer as the network does.
    """
    images = _images(found.data, "test", CHECKED)
    sizes = [size for size in (1, 2, 33) if size < len(images)]
    sizes.append(len(images) - sum(sizes))
    # asked before it is written, so that hooks have settled
    expected = torch.cat([network(batch) for batch in images.split(sizes)])
    try:
        made.write(network, images[:2].clone(), output, path)
        answers = made.read(path, network)
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the student cannot be exported to {path.name}: {line}") from error
    given = torch.cat([answers(batch) for batch in images.split(sizes)])
    difference = float((given - expected).abs().max())
    if not difference <= LIMIT:
        raise InputError(
            f"{path.name} is not kept: its {output} differ from PyTorch's by up to {difference:.2g} on {len(images)} "
            f"images, more than {LIMIT:g}"
        )
    spread = float((expected.max(0).values - expected.min(0).values).max())
    check = {"data": found.data_name, "part": "test", "images": len(images), "batches": sizes}
    check |= {"largest_difference": difference, "limit": LIMIT, "spread": spread}
    return {"file": path.name, **_sealed(path), "output": output, "check": check, "latency": _latency(answers, images)}


def _images(module: Any, part: str, count: int) -> Tensor:
    """The first images of a part as floats in [0, 1]."""
    found: list[Tensor] = []
    for batch in batches(module, part):
        found.append(_float(batch.images))
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]


def _float(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _sealed(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _latency(answers: Answer, images: Tensor) -> dict[str, Any]:
    shape = list(images.shape[1:])
    measured = {f"batch_{size}": latency(answers, shape, size) for size in (1, 64)}
    return {"device": "cpu", "processor": processor(), "threads": torch.get_num_threads(), **measured}


def quantised(kind: str, source: Path, found: Restored) -> dict[str, Any]:
    """Quantises the file beside it and measures both on the whole test part.

    Raises:
        InputError: there are no images to calibrate on.
    """
    part = "train" if found.data.memory is not None else "val"
    images = _images(found.data, part if kind == "static" else "test", CALIBRATED)
    target = source.with_name(integers.FILE)
    integers.quantise(kind, source, target, images)
    answers = {"float": read_onnx(source), "int8": read_onnx(target)}
    scores = {name: _scores(read, found) for name, read in answers.items()}
    calibration = {"part": part, "images": len(images)} if kind == "static" else None
    about = {"kind": kind, "file": target.name, **_sealed(target), "calibration": calibration}
    return {**about, "test": scores, "latency": _latency(answers["int8"], images)}


def _scores(answers: Answer, found: Restored) -> Mapping[str, float]:
    measured = answer(lambda images: answers(_float(images)), None, found.batches("test"), len(found.names), CPU)
    return {key: measured.metrics()[key] for key in ("acc", "nll", "ece")}
