"""The end of a run: the student is saved before the test set is evaluated, so that a failing test does not lose it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.model_helpers import is_overridden

from kd.distill.distiller import Distiller
from kd.errors import Stopped
from kd.files import relative
from kd.models.normalized import InputSpec, unwrap
from kd.models.weights import fingerprint, save, save_tensors
from kd.process.command import command
from kd.run_folder import predictor
from kd.run_folder.layout import PREDICTIONS, STUDENT
from kd.run_folder.summary import write_summary
from kd.train.choice import choose
from kd.train.console import print_results
from kd.train.run import Run
from kd.train.summary import limits_of, summarise

log = logging.getLogger(__name__)


def finish(run: Run) -> dict[str, Any]:
    """Restores the best epoch, writes the results, tests once, and returns the summary."""
    trainer, distiller = run.trainer, run.distiller
    run.config = {**run.config, "data": distiller.hparams["config"]["data"]}  # with the batch size found
    duration = _duration(run)  # before averaged weights are validated, which takes time
    chosen = choose(trainer, distiller, run.data, run.history)
    if chosen.weights is not None:
        distiller.load_state_dict(chosen.weights)
    summary = summarise(run.config, distiller, run.data, run.history, run.gate.accuracy)
    summary["objective"] |= {"name": run.objective}
    summary |= {"cell": run.config.get("cell"), "training": duration}
    summary["metrics"] |= {"monitor": chosen.monitor, "best": chosen.scores, "chosen": chosen.words}
    summary["metrics"] |= {"test": None, "untested": "not yet"}
    if trainer.is_global_zero:
        save_results(run.folder, distiller, summary)
    test(run, summary)
    if trainer.is_global_zero and not summary["cell"]:
        print_results(summary, run.folder)
    trainer.strategy.barrier("summary written")
    return summary


def _duration(run: Run) -> dict[str, Any]:
    """Epochs, steps, seconds and images per second of the training."""
    begun = run.trainer.fit_loop.epoch_progress.current.started  # type: ignore[attr-defined]
    return {
        "epochs": min(begun, run.config["trainer"]["max_epochs"]),  # excludes SWA's epoch for batch norms
        "steps": run.trainer.global_step,
        "seconds": round(run.history.seconds, 2),
        "images_per_s": round(run.history.images / run.history.seconds, 1),
        "limits": limits_of(run.config),
    }


def save_results(folder: Path, distiller: Distiller, summary: dict[str, Any]) -> None:
    """Writes the student, then the summary, which marks the run as trained."""
    (folder / PREDICTIONS).unlink(missing_ok=True)  # those of the run before it was extended
    summary["student"]["sha256"] = fingerprint(unwrap(distiller.student))
    metadata = {key: json.dumps(summary["student"][key]) for key in ("name", "config", *InputSpec._fields)}
    save(unwrap(distiller.student), folder / STUDENT, metadata=metadata)
    if (term := distiller.objective.predictor) is not None:
        predictor.keep(term, folder)
    write_summary(folder, summary)


def test(run: Run, summary: dict[str, Any]) -> None:
    """Adds the test scores to the summary and writes the predictions; if the test fails, the summary has the reason."""
    metrics = summary["metrics"]
    if not is_overridden("test_dataloader", run.data.lightning):
        metrics |= {"test": {}, "untested": "the data has no test part"}
    else:
        try:
            tested = run.trainer.test(run.distiller, datamodule=run.data.lightning, verbose=False)
        except Exception as error:
            _failed(error, run, summary)
            raise
        del metrics["untested"]
        scores = (tested or [{}])[0].items()  # NaN: no image has a label
        metrics["test"] = {key.removeprefix("test/"): value for key, value in scores if not math.isnan(value)}
    predictions = run.distiller.predictions.compute()
    if run.trainer.is_global_zero:
        if predictions:
            save_tensors(predictions, run.folder / PREDICTIONS)
        write_summary(run.folder, summary)


def _failed(error: Exception, run: Run, summary: dict[str, Any]) -> None:
    """Notes in the summary why there are no test scores, and logs the command that measures them later."""
    if not run.trainer.is_global_zero:
        return
    summary["metrics"]["untested"] = (str(error).strip() or type(error).__name__).splitlines()[0]
    write_summary(run.folder, summary)
    if not isinstance(error, Stopped):  # its message already has a command: the one that resumes
        later = command("kd-evaluate", run=relative(run.folder))
        log.warning("the test failed; the trained student is saved. Once the cause is fixed, test it with: %s", later)
