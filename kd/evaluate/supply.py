"""Test scores for the summary of a run whose own test failed."""

from __future__ import annotations

from collections.abc import Mapping

from kd.place import sha256_of
from kd.restore import Restored
from kd.run import write_summary


def supply(found: Restored, scores: Mapping[str, float]) -> None:
    """Adds the scores of the run's own test part to its summary, if it has none.

    Where the data is no longer that of the training, as a damaged picture was replaced, its sha256 is added too.
    """
    known = found.summary.get("metrics")
    if not isinstance(known, dict) or known.get("test") is not None:
        return
    metrics = {key: value for key, value in known.items() if key != "untested"}
    metrics["test"] = {key: value for key, value in scores.items() if key != "brier"}
    sha256 = sha256_of(found.data)
    if sha256 not in (None, found.summary["data"].get("sha256")):
        metrics["test_data_sha256"] = sha256
    write_summary(found.folder, {**found.summary, "metrics": metrics})
