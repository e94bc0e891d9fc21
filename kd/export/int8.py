"""Post-training quantisation of an ONNX file to 8-bit integers, by onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from kd.errors import InputError, unknown
from kd.export.formats import INPUT

KINDS = ("dynamic", "static")
FILE = "student.int8.onnx"


def kind_of(value: str, format: str) -> str | None:
    """``dynamic``, ``static`` or None for a value of ``int8``; ``true`` means ``static``.

    Raises:
        InputError: another value, or a format without 8-bit support.
    """
    word = value.lower()
    if word in ("false", "none"):
        return None
    kind = "static" if word == "true" else word
    if kind not in KINDS:
        raise unknown("kind of int8", value, ("false", "true", *KINDS))
    if format != "onnx":
        raise InputError(f"int8={value} requires format=onnx, got format={format}")
    return kind


def quantise(kind: str, source: Path, target: Path, images: Tensor) -> None:
    """Writes an 8-bit version of an ONNX file.

    Weights are quantised per output channel. ``dynamic`` determines the range of each activation in each call,
    ``static`` once, as the minimum and maximum over ``images`` [N, C, H, W]. Weights use seven bits, because processors
    without VNNI instructions add pairs of products in 16 bits.

    Raises:
        InputError: onnxruntime cannot quantise this network.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared))
            weight: dict[str, Any] = {"per_channel": True, "reduce_range": True}
            if kind == "dynamic":
                unsigned = quantization.QuantType.QUInt8  # the only type that its convolutions support
                quantization.quantize_dynamic(prepared, target, weight_type=unsigned, **weight)
            else:
                quantization.quantize_static(prepared, target, _reader(images), **weight)
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"int8={kind}: onnxruntime cannot quantise this network: {line}") from error


def _reader(images: Tensor, size: int = 32) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(size))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    return Reader()
