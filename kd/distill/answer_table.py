"""A table on disk of a teacher's logits: one row per view of each training image, filled as the views occur."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.errors import InputError, unknown

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
FORMAT = 1
KEY = "key.json"


class AnswerTable:
    """Rows of logits, or of the ``topk`` largest log-probabilities and the remaining mass, in memory-mapped files.

    Several processes may fill one table: they write identical rows, and a row is marked as filled only after its
    values are on disk, so that the marks are correct even if a run is killed.

    Args:
        folder: contains the files; created atomically if it does not exist.
        key: plain containers that determine the rows; must equal the key of an existing folder.
        samples: number of training images.
        views: number of views per image.
        classes: number of logits per row.
        dtype: ``float32`` (exact; ``float64`` for a float64 network), ``float16`` or ``bfloat16``.
        topk: number of classes to store; 0 stores all of them.

    Raises:
        InputError: ``dtype`` or ``topk`` is invalid; the folder contains the table of another teacher, data set or
            augmentation (the message names the difference) or is damaged; or the disk has no space for it.
    """

    FLUSH = 10.0  # seconds between writes to the disk

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        samples: int,
        views: int,
        classes: int,
        dtype: str = "float32",
        topk: int = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise unknown("cache.dtype", dtype, DTYPES)
        if not 0 <= topk < classes:
            raise InputError(f"cache.topk must be between 0 and {classes - 1}, got {topk}")
        self.folder, self.classes, self.topk, self.views = folder, classes, topk, views
        self.key = {"format": FORMAT, **key, "samples": samples, "views": views, "classes": classes}
        self.key |= {"dtype": dtype, "topk": topk}
        rows, width = samples * views, topk or classes
        self.layout: dict[str, tuple[torch.dtype, int]] = {"values": (DTYPES[dtype], width)}
        if topk:
            self.layout |= {"indices": (torch.int32, topk), "rest": (torch.float32, 1)}
        self.layout |= {"met": (torch.uint8, 1)}
        self.rows = rows
        if not (folder / KEY).is_file():
            self._make()
        self._check()
        self._files = {name: self._mapped(name, *self.layout[name]) for name in self.layout}
        self.parts = {name: torch.from_numpy(file).view(self.layout[name][0]) for name, file in self._files.items()}
        self.met = self.parts["met"].flatten().bool()
        self._unmarked: list[Tensor] = []
        self._flushed = time.monotonic()

    @staticmethod
    def bytes(samples: int, views: int, classes: int, dtype: str, topk: int) -> int:
        """The size of a table on disk, in bytes."""
        width = topk or classes
        row = width * DTYPES[dtype].itemsize + (4 * topk + 4 if topk else 0) + 1
        return samples * views * row

    def filled(self) -> float:
        """The percentage of rows that are filled."""
        return 100 * float(self.met.float().mean())

    def read(self, rows: Tensor) -> Tensor:
        """The logits [B, C] in filled rows [B], at least float32; with ``topk``, log-probabilities at T = 1."""
        values = self.parts["values"][rows]
        values = values if values.dtype == torch.float64 else values.float()
        if not self.topk:
            return values
        remainder = self.parts["rest"][rows].clamp(min=1e-12) / (self.classes - self.topk)
        return (
            remainder.log().to(values).expand(-1, self.classes).scatter(1, self.parts["indices"][rows].long(), values)
        )

    def write(self, rows: Tensor, logits: Tensor) -> None:
        """Stores logits [B, C] in rows [B]; the next flush marks them as filled on disk."""
        if self.topk:
            least = logits if logits.dtype == torch.float64 else logits.float()
            values, indices = least.log_softmax(-1).topk(self.topk, -1)
            self.parts["indices"][rows] = indices.int()
            self.parts["rest"][rows] = (1 - values.exp().sum(-1, keepdim=True)).float()
        else:
            values = logits
        self.parts["values"][rows] = values.to(self.parts["values"].dtype)
        self.met[rows] = True
        self._unmarked.append(rows)
        if time.monotonic() - self._flushed > self.FLUSH:
            self.flush()

    def flush(self) -> None:
        """Writes new rows to disk, then their marks, and picks up the rows that other processes have filled."""
        if self._unmarked:
            for name in self.layout:  # marks are last: a marked row must be on disk
                if name == "met":
                    self.parts["met"][torch.cat(self._unmarked)] = 1
                self._files[name].flush()
            self._unmarked.clear()
        self.met |= self.parts["met"].flatten().bool()
        self._flushed = time.monotonic()

    def _make(self) -> None:
        temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        try:
            temporary.mkdir(parents=True)
            for name, (dtype, width) in self.layout.items():
                with (temporary / f"{name}.bin").open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, self.rows * width * dtype.itemsize)
            (temporary / KEY).write_text(json.dumps(self.key, indent=2) + "\n")
            temporary.rename(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not (self.folder / KEY).is_file():  # otherwise another process created it first
                size = sum(self.rows * width * dtype.itemsize for dtype, width in self.layout.values())
                why = error.strerror or error
                raise InputError(f"cannot create the cache {self.folder} of {size / 1e9:.2f} GB: {why}") from error

    def _check(self) -> None:
        try:
            stored = json.loads((self.folder / KEY).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder / KEY} is damaged: delete {self.folder} to rebuild it") from error
        mine = json.loads(json.dumps(self.key))
        differing = [name for name in sorted({*stored, *mine}) if stored.get(name) != mine.get(name)]
        if differing:
            first = differing[0]
            difference = f"{first} is {_short(stored.get(first))} in the cache, {_short(mine.get(first))} in this run"
            raise InputError(f"the cache {self.folder} has another {' and '.join(differing)}: {difference}")
        for name, (dtype, width) in self.layout.items():
            path, size = self.folder / f"{name}.bin", self.rows * width * dtype.itemsize
            if not path.is_file() or path.stat().st_size != size:
                raise InputError(f"{path} is truncated or missing: delete {self.folder} to rebuild it")

    def _mapped(self, name: str, dtype: torch.dtype, width: int) -> np.memmap:
        plain = np.dtype(f"i{dtype.itemsize}")  # numpy has no bfloat16
        return np.memmap(self.folder / f"{name}.bin", plain, "r+", shape=(self.rows, width))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
