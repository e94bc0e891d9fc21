"""The end of a run: the student is chosen and written before the test part is touched, so that nothing can lose it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden

from kd.callbacks.history import History
from kd.callbacks.teacher_gate import TeacherGate
from kd.distill.distiller import Distiller
from kd.errors import Stopped
from kd.files import relative
from kd.models.normalized import InputSpec, unwrap
from kd.models.weights import fingerprint, save, save_tensors
from kd.process.command import command
from kd.run_folder import predictor
from kd.run_folder.layout import PREDICTIONS, STUDENT
from kd.run_folder.summary import write_summary
from kd.train.assemble import Config
from kd.train.choice import choose
from kd.train.console import print_results
from kd.train.summary import limits_of, summarise

log = logging.getLogger(__name__)


def finish(
    config: Config,
    folder: Path,
    trainer: pl.Trainer,
    distiller: Distiller,
    data: Any,
    record: History,
    gate: TeacherGate,
    about: Config,
) -> dict[str, Any]:
    """Goes back to the best epoch, writes what is left behind, and touches the test set once; the summary."""
    config = {**config, "data": distiller.hparams["config"]["data"]}  # with the batch size that was looked for
    course = _course(config, trainer, record)  # before a validation of averaged weights
    chosen = choose(trainer, distiller, data, record)
    if chosen.weights is not None:
        distiller.load_state_dict(chosen.weights)
    summary = summarise(config, distiller, data, record, gate.accuracy)
    summary["objective"] |= {"name": about.get("objective")}
    summary |= {"cell": about.get("cell"), "training": course}
    summary["metrics"] |= {"monitor": chosen.monitor, "best": chosen.scores, "chosen": chosen.words}
    summary["metrics"] |= {"test": None, "untested": "not yet"}
    if trainer.is_global_zero:
        save_results(folder, distiller, summary)
    measure(folder, trainer, distiller, data, summary)
    if trainer.is_global_zero and not summary["cell"]:
        print_results(summary, folder)
    trainer.strategy.barrier("summary written")
    return summary


def _course(config: Config, trainer: pl.Trainer, record: History) -> dict[str, Any]:
    """How long the training was, and how fast."""
    steps, begun = trainer.global_step, trainer.fit_loop.epoch_progress.current.started  # type: ignore[attr-defined]
    return {
        "epochs": min(begun, config["trainer"]["max_epochs"]),  # without SWA's pass for batch norms
        "steps": steps,
        "seconds": round(record.seconds, 2),
        "images_per_s": round(record.images / record.seconds, 1),
        "limits": limits_of(config),
    }


def save_results(folder: Path, distiller: Distiller, summary: dict[str, Any]) -> None:
    """Writes the student and, last of all, the summary."""
    (folder / PREDICTIONS).unlink(missing_ok=True)  # of a shorter run, of another student
    summary["student"]["sha256"] = fingerprint(unwrap(distiller.student))
    about = {key: json.dumps(summary["student"][key]) for key in ("name", "config", *InputSpec._fields)}
    save(unwrap(distiller.student), folder / STUDENT, metadata=about)
    if (term := distiller.objective.predictor) is not None:
        predictor.keep(term, folder)
    write_summary(folder, summary)


def measure(folder: Path, trainer: pl.Trainer, distiller: Distiller, data: Any, summary: dict[str, Any]) -> None:
    """Adds the scores of the test part to the summary, and writes the answers; if that fails, the summary says so."""
    metrics = summary["metrics"]
    if not is_overridden("test_dataloader", data.lightning):
        metrics |= {"test": {}, "untested": "the data has no test part"}
    else:
        try:
            tested = trainer.test(distiller, datamodule=data.lightning, verbose=False)
        except Exception as error:
            _failed(error, folder, trainer, summary)
            raise
        del metrics["untested"]
        scores = (tested or [{}])[0].items()  # without those that no label was there for
        metrics["test"] = {key.removeprefix("test/"): value for key, value in scores if not math.isnan(value)}
    predictions = distiller.predictions.compute()
    if trainer.is_global_zero:
        if predictions:
            save_tensors(predictions, folder / PREDICTIONS)
        write_summary(folder, summary)


def _failed(error: Exception, folder: Path, trainer: pl.Trainer, summary: dict[str, Any]) -> None:
    """Says in the summary why there are no test scores, and in the log how they can still be had."""
    if not trainer.is_global_zero:
        return
    summary["metrics"]["untested"] = (str(error).strip() or type(error).__name__).splitlines()[0]
    write_summary(folder, summary)
    if not isinstance(error, Stopped):  # which says itself how to go on
        later = command("kd-evaluate", run=relative(folder))
        log.warning(
            "test: it failed; the trained student is kept, and once the cause is mended it is measured by: %s", later
        )
