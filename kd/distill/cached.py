"""The cached teacher: each view of each training image is answered by the network once ever, then looked up."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.data.batch import Batch
from kd.data.datamodule import image_data
from kd.distill.answer_table import DTYPES, AnswerTable
from kd.distill.identity import structure_key
from kd.distill.teacher import Frozen, FrozenTeacher
from kd.errors import InputError, unknown
from kd.models.normalized import Normalized, unwrap

log = logging.getLogger(__name__)

# how far a looked-up row may lie from a fresh answer, as a share of the largest logit: rounding, no more
TOLERANCE = {"float64": 1e-5, "float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2}
CHECKED = 8  # rows
TF32 = 2e-2  # the same where convolutions round to TF32, and perhaps did not when the row was written


@dataclass(frozen=True)
class CacheOptions:
    """Where and how teachers' answers are kept.

    Args:
        root: the folder that holds the tables.
        dtype: ``float32`` (exact), ``float16`` or ``bfloat16``.
        topk: how many classes of each answer are kept, with the mass of the rest spread evenly; 0 for all of them.
        max_gb: a table above this size is not made.

    Raises:
        InputError: an unknown ``dtype``, or a number out of range.
    """

    root: str = "runs/cache"
    dtype: str = "float32"
    topk: int = 0
    max_gb: float = 8.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise unknown("cache.dtype", self.dtype, DTYPES)
        if self.topk < 0:
            raise InputError(f"cache.topk must be at least 0, got {self.topk}")
        if not self.max_gb > 0:
            raise InputError(f"cache.max_gb must be above 0, got {self.max_gb:g}")

    def of(self, precision: str) -> CacheOptions:
        """The same for a teacher that computes in this precision: exact numbers are its own."""
        exact = precision.startswith("64") and self.dtype == "float32"
        return replace(self, dtype="float64") if exact else self


class Cached(FrozenTeacher):
    """A frozen teacher whose logits for views met before come out of a table.

    A batch without ``index`` and ``view`` (evaluation) is answered by the network, and so is every batch once
    layers are tapped, as only logits are kept. A half-known batch runs only what is missing. In each epoch the first
    looked-up rows are compared with fresh answers: the first batch, or of batches that are known in part so many rows
    that they are ``CHECKED`` together. That takes one batch of the network at most for each epoch.

    Args:
        frozen: the teacher.
        table: of its answers.
        tolerance: the largest deviation of a looked-up row from a fresh answer, as a share of its largest logit.

    Raises:
        InputError: rows that are not the teacher's answers.
    """

    def __init__(self, frozen: Frozen, table: AnswerTable, tolerance: float = 1e-3) -> None:
        super().__init__(frozen.networks())
        self.__dict__["frozen"] = frozen
        self.table, self.tolerance = table, tolerance
        self.hits = self.requests = 0
        self._unchecked = CHECKED
        self._epoch: Tensor | None = None

    frozen: Frozen

    @property
    def network(self) -> nn.Module:
        """The network that answers what is not in the table."""
        return self.frozen.network

    def tap(self, layers: Iterable[str]) -> None:
        """Names layers to tap; with any, every batch runs through the network."""
        self.frozen.tap(layers)

    def owned_modules(self) -> list[nn.Module]:
        return self.frozen.owned_modules()

    @property
    def bypassed(self) -> bool:
        """Whether the table is of no use, because layers are tapped."""
        return bool(self.frozen.taps.layers)

    def prefetch(self, index: Tensor, view: Tensor, device: torch.device) -> None:
        """Lays the answers of an epoch's samples [N] on the device, so that no step of it waits for the host.

        Only if all of them are known, no sample comes twice, and they take no more than half of what is free there.
        """
        self._epoch = None
        rows = index * self.table.views + view
        if self.bypassed or len(index.unique()) < len(index) or not bool(self.table.met[rows].all()):
            return
        count = int(index.max()) + 1
        if device.type == "cuda" and 4 * count * self.table.classes > torch.cuda.mem_get_info(device)[0] / 2:
            return
        logits = self._read(rows, index.device)
        answers = logits.new_zeros(count, self.table.classes)
        answers[index] = logits
        self._epoch = answers.to(device)

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{"": logits [B, C], layer: tensor, ...}`` for a batch, without gradient."""
        if self.bypassed or batch.index is None or batch.view is None:
            return self.frozen(batch)
        if self._epoch is not None:
            self.requests, self.hits = self.requests + len(batch.index), self.hits + len(batch.index)
            logits = self._epoch.index_select(0, batch.index)
            self._check(batch, logits)
            return {"": logits}
        rows = (batch.index * self.table.views + batch.view).cpu()
        met = self.table.met[rows]
        hits = int(met.sum())
        self.requests, self.hits = self.requests + len(rows), self.hits + hits
        if hits == len(rows):
            logits = self._read(rows, batch.images.device)
            self._check(batch, logits)
            return {"": logits}
        return {"": self._filled(batch, rows, met, hits)}

    def _filled(self, batch: Batch, rows: Tensor, met: Tensor, hits: int) -> Tensor:
        if hits and self._unchecked:
            old = met.nonzero().flatten()[: self._unchecked]
            at = old.to(batch.images.device)
            self._check(Batch(batch.images[at], batch.labels[at]), self._read(rows[old], at.device))
        missing = (~met).nonzero().flatten()
        some = missing.to(batch.images.device)
        images, labels = (batch.images, batch.labels) if not hits else (batch.images[some], batch.labels[some])
        fresh = self.frozen(Batch(images, labels))[""]
        self.table.write(rows[missing], fresh.cpu())
        return self._read(rows, fresh.device)  # as every later look-up gives it

    def _read(self, rows: Tensor, device: torch.device) -> Tensor:
        """The logits [B, C] in met rows [B], in float64 where the network is."""
        logits = self.table.read(rows)
        network = next(self.network.parameters(), logits)
        return logits.to(device, torch.promote_types(logits.dtype, network.dtype))

    def _check(self, batch: Batch, logits: Tensor) -> None:
        """Compares looked-up rows with fresh answers: nothing else would notice a wrong table."""
        if not self._unchecked:
            return
        fresh = self.frozen(batch)[""].to(logits.dtype)
        if self.table.topk:  # only what is kept can be compared
            top = logits.topk(self.table.topk, -1).indices
            fresh, logits = fresh.log_softmax(-1).gather(1, top), logits.gather(1, top)
        apart = float((fresh - logits).abs().max() / fresh.abs().max().clamp(min=1.0))
        coarse = fresh.is_cuda and torch.backends.cudnn.allow_tf32
        if not apart <= (max(self.tolerance, TF32) if coarse else self.tolerance):
            raise InputError(
                f"the cache {self.table.folder} does not hold this teacher's answers: they differ by {apart:.2g} of "
                "the largest logit; delete it, or set teacher.cache=off"
            )
        self._unchecked = max(self._unchecked - len(logits), 0)

    def on_epoch_end(self) -> None:
        """Brings what is new to the disk, at an epoch's end; the next epoch checks again."""
        self.table.flush()
        self._unchecked, self._epoch = CHECKED, None

    def flush(self) -> None:
        """Brings what is new to the disk, so that a run that goes on from a checkpoint meets the same rows."""
        self.table.flush()

    def log_metrics(self) -> dict[str, float]:
        """``cache_hits``: the share of answers looked up since it was last asked for."""
        share = self.hits / max(self.requests, 1)
        requests, self.requests, self.hits = self.requests, 0, 0
        return {} if not requests else {"cache_hits": share}


def cached(
    frozen: Frozen,
    data: Any,
    where: str,
    store: CacheOptions,
    name: str,
    precision: str,
    network: Mapping[str, Any] | None = None,
) -> Frozen | Cached:
    """The teacher with a table of its answers, or without, where they cannot be kept; says which and why.

    Args:
        frozen: the teacher, with its weights.
        data: says ``views``, ``augmentation()``, ``train_sha256()`` and ``counts()``; no other data can be cached.
        where: ``off``, ``auto`` for a folder of its own under ``store.root``, or that folder.
        store: how answers are kept.
        name: the teacher's, for the folder's name.
        precision: in which it computes, as Lightning calls it.
        network: of :func:`kd.distill.identity.answers_key`; None takes the network's own modules.

    Raises:
        InputError: an explicit folder that cannot serve.
    """
    if where == "off":
        return frozen
    store = store.of(precision)
    size = _size(data, store, where)
    if size is None:
        return frozen
    key, samples = key_of(frozen, data, precision, network), data.counts()["train"]
    folder = Path(store.root) / f"{name}-{digest(key, store)}" if where == "auto" else Path(where)
    try:
        table = AnswerTable(folder, key, samples, data.views, data.classes, store.dtype, store.topk)
    except InputError as error:
        if where == "auto" and _no_space(folder, size):
            log.info("cache: off, %s", error)
            return frozen
        raise
    log.info("cache: %s, %s views, %.2f GB, %.1f %% filled", folder, f"{table.rows:,}", size, table.filled())
    return Cached(frozen, table, TOLERANCE[store.dtype] if precision.startswith(("32", "64")) else 0.1)


def _size(data: Any, store: CacheOptions, where: str) -> float | None:
    """How many GB the answers for this data take; None, which is said, where they cannot be kept."""
    count = image_data(data).views
    reason, size = "the augmentations of this data cannot be counted (data.views=K draws K for each image)", 0.0
    if count:
        size = AnswerTable.bytes(data.counts()["train"], count, data.classes, _checked(store.dtype), store.topk) / 1e9
        reason = f"it would take {size:.2f} GB, more than cache.max_gb={store.max_gb:g}"
    if count and size <= store.max_gb:
        return size
    if where != "auto":
        raise InputError(f"teacher.cache={where}: {reason}")
    log.info("cache: off, %s", reason)
    return None


def key_of(frozen: Frozen, data: Any, precision: str, network: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a teacher's logits for a view depend on; the arguments are those of :func:`cached`."""
    module = frozen.network
    pixels: Mapping[str, Any] = {}
    if isinstance(module, Normalized):
        pixels = {"mean": module.mean.flatten().tolist(), "std": module.std.flatten().tolist(), "size": module.size}
    return {
        "teacher": {**(network or structure_key(unwrap(module))), "sha256": frozen.fingerprint()},
        "pixels": pixels,
        "columns": None if frozen.columns is None else frozen.columns.tolist(),
        "data": data.train_sha256(),
        "augmentation": data.augmentation(),
        "precision": precision,
    }


def digest(key: Mapping[str, Any], store: CacheOptions) -> str:
    """Sixteen letters that stand for a key."""
    text = json.dumps([key, store.dtype, store.topk], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checked(dtype: str) -> str:
    if dtype not in DTYPES:
        raise unknown("cache.dtype", dtype, DTYPES)
    return dtype


def _no_space(folder: Path, size: float) -> bool:
    existing = next((path for path in folder.absolute().parents if path.is_dir()), Path("/"))
    return shutil.disk_usage(existing).free < size * 1e9
