"""Writes an exported file, loads it again, compares it with PyTorch and measures its latency."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.evaluate.loaded_run import LoadedRun, batches
from kd.evaluate.measure import measure
from kd.export import int8 as integers
from kd.export.formats import Format, Predict, read_onnx
from kd.export.timing import latency, processor

CHECKED, CALIBRATED = 128, 512
LIMIT = 1e-4
CPU = torch.device("cpu")


def write_checked(network: nn.Module, exporter: Format, loaded: LoadedRun, output: str, path: Path) -> dict[str, Any]:
    """Writes the file, loads it again, and compares it with the network on test images.

    Raises:
        InputError: the file cannot be written, or its outputs differ from the network's.
    """
    images = _images(loaded.data, "test", CHECKED)
    sizes = [size for size in (1, 2, 33) if size < len(images)]
    sizes.append(len(images) - sum(sizes))
    # before writing, so that lazily built hooks exist
    expected = torch.cat([network(batch) for batch in images.split(sizes)])
    try:
        exporter.write(network, images[:2].clone(), output, path)
        predict = exporter.read(path, network)
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the student cannot be exported to {path.name}: {line}") from error
    outputs = torch.cat([predict(batch) for batch in images.split(sizes)])
    difference = float((outputs - expected).abs().max())
    if not difference <= LIMIT:
        raise InputError(
            f"{path.name} is not kept: its {output} differ from PyTorch's by up to {difference:.2g} on {len(images)} "
            f"images (limit {LIMIT:g})"
        )
    spread = float((expected.max(0).values - expected.min(0).values).max())
    check = {"data": loaded.data_name, "part": "test", "images": len(images), "batches": sizes}
    check |= {"largest_difference": difference, "limit": LIMIT, "spread": spread}
    return {"file": path.name, **_size(path), "output": output, "check": check, "latency": _latency(predict, images)}


def _images(module: Any, part: str, count: int) -> Tensor:
    """The first images of a part as floats in [0, 1]."""
    images: list[Tensor] = []
    for batch in batches(module, part):
        images.append(_float(batch.images))
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count]


def _float(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _size(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _latency(predict: Predict, images: Tensor) -> dict[str, Any]:
    shape = list(images.shape[1:])
    measured = {f"batch_{size}": latency(predict, shape, size) for size in (1, 64)}
    return {"device": "cpu", "processor": processor(), "threads": torch.get_num_threads(), **measured}


def quantise(kind: str, source: Path, loaded: LoadedRun) -> dict[str, Any]:
    """Writes an 8-bit version beside an ONNX file and evaluates both on the whole test part.

    Raises:
        InputError: there are no images to calibrate on.
    """
    part = "train" if loaded.data.memory is not None else "val"
    images = _images(loaded.data, part if kind == "static" else "test", CALIBRATED)
    target = source.with_name(integers.FILE)
    integers.quantise(kind, source, target, images)
    predictors = {"float": read_onnx(source), "int8": read_onnx(target)}
    scores = {name: _scores(predict, loaded) for name, predict in predictors.items()}
    calibration = {"part": part, "images": len(images)} if kind == "static" else None
    file = {"kind": kind, "file": target.name, **_size(target), "calibration": calibration}
    return {**file, "test": scores, "latency": _latency(predictors["int8"], images)}


def _scores(predict: Predict, loaded: LoadedRun) -> Mapping[str, float]:
    classes = len(loaded.names)
    evaluation = measure(lambda images: predict(_float(images)), None, loaded.batches("test"), classes, CPU)
    metrics = evaluation.metrics()
    return {key: metrics[key] for key in ("acc", "nll", "ece")}
