"""CSV files of curves, which Lightning's logger would begin anew when a run is resumed."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only


def continued(logger: CSVLogger, step: int) -> None:
    """Keeps the rows of a resumed run's ``metrics.csv`` that are before ``step``, and none of the others.

    The file is read before the logger, at its first use, deletes it.
    """
    path = Path(logger.log_dir) / "metrics.csv"
    if rank_zero_only.rank or not path.is_file():  # type: ignore[attr-defined]
        return
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    with warnings.catch_warnings():  # of files that it is about to delete, whose rows are kept here
        warnings.filterwarnings("ignore", message=".*exists and is not empty")
        logger.experiment.metrics.extend(rows)
    logger.save()
