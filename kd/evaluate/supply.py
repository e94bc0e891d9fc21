"""Test scores for the summary of a run whose own test failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.callbacks.position import sha256_of
from kd.evaluate.loaded_run import Restored
from kd.run_folder.summary import write_summary


def supply(found: Restored, result: Mapping[str, Any], own: bool) -> None:
    """Adds what was measured to the run's summary, if it has no test scores and this is its ``own`` data's test part.

    Where the data is no longer that of the training, as a damaged picture was replaced, its sha256 is added too.
    """
    known = found.summary.get("metrics")
    if not own or result["data"]["part"] != "test" or not isinstance(known, dict) or known.get("test") is not None:
        return
    metrics = {key: value for key, value in known.items() if key != "untested"}
    metrics["test"] = {key: value for key, value in result["metrics"].items() if key != "brier"}
    sha256 = sha256_of(found.data)
    if sha256 not in (None, found.summary["data"].get("sha256")):
        metrics["test_data_sha256"] = sha256
    write_summary(found.folder, {**found.summary, "metrics": metrics})
