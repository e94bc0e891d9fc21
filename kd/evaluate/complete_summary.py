"""Adds test scores to the summary of a run whose own test failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.callbacks.position import sha256_of
from kd.evaluate.loaded_run import LoadedRun
from kd.run_folder.summary import write_summary


def complete_summary(loaded: LoadedRun, result: Mapping[str, Any], is_own_data: bool) -> None:
    """Adds the scores to the run's summary if it has no test scores and the test part of its own data was evaluated.

    If the data has changed since training, for example because a damaged image was replaced, its sha256 is added too.
    """
    saved = loaded.summary.get("metrics")
    is_test = is_own_data and result["data"]["part"] == "test"
    if not is_test or not isinstance(saved, dict) or saved.get("test") is not None:
        return
    metrics = {key: value for key, value in saved.items() if key != "untested"}
    metrics["test"] = {key: value for key, value in result["metrics"].items() if key != "brier"}
    sha256 = sha256_of(loaded.data)
    if sha256 not in (None, loaded.summary["data"].get("sha256")):
        metrics["test_data_sha256"] = sha256
    write_summary(loaded.folder, {**loaded.summary, "metrics": metrics})
