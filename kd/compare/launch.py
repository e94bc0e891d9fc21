"""``kd-compare``: launches the cells of a comparison through Hydra, shows how far it is, and ends in the report."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import kd
from kd.compare.plan import Cell, check_same, plan, prepare, run_cell, teach, unfinished
from kd.errors import InputError, Stopped
from kd.files import write_text
from kd.process._hydra import callbacks_of
from kd.process.classify import classify
from kd.process.exits import Failure, exit_on_error, write_traceback
from kd.process.job import Job

HELP = """kd-compare measures whether distillation helps: one teacher and, for each seed, one student from scratch and
one for each objective, with the same budget and the same batches; then a table, verdicts and report.html.

  kd-compare objective=[kd,dkd,dist] seeds=5 student=resnet8 teacher=resnet56 epochs=30

  objective=[...]   names from configs/objective; by default kd
  seeds=5           the number of seeds, counted from 0, or a list: seeds=[3,4]
  shuffled=true     adds a control: the first objective with the teacher's logits shuffled across samples
  +variants.NAME=[OVERRIDE,...]   adds a student with these overrides of kd-train
  study=FOLDER      the folder of the runs; by default it is named after the configuration, so that the same command
                    resumes a comparison and skips finished runs
  hydra/launcher=joblib   runs in parallel, with any of Hydra's launchers

Everything else is an override of kd-train; see kd-train --help."""
QUIET = ("trainer.enable_progress_bar=false", "hydra/job_logging=file", "hydra/hydra_logging=none")


@dataclass
class CompareOptions:
    """What ``kd-compare`` takes besides the overrides of ``kd-train``."""

    objective: Sequence[str] = ("kd",)
    seeds: int | Sequence[int] = 5
    study: str | None = None
    shuffled: bool = False
    variants: Mapping[str, Sequence[str]] | None = None


def parse_options(words: Sequence[str]) -> tuple[CompareOptions, list[str]]:
    """The words that are kd-compare's own, and the rest, which are overrides of kd-train.

    Raises:
        InputError: a value of its own that is no such thing.
    """
    own, rest = CompareOptions(), []
    variants: dict[str, Sequence[str]] = {}
    for word in words:
        name, _, text = word.lstrip("+").partition("=")
        if name.startswith("variants."):
            variants[name.removeprefix("variants.")] = _list(word, text)
        elif name == "objective":
            own.objective = _list(word, text)
        elif name == "seeds":
            value = yaml.safe_load(text)
            own.seeds = value if isinstance(value, int) else _list(word, text)
        elif name == "study":
            own.study = text
        elif name == "shuffled":
            if text not in ("true", "false"):
                raise InputError(f"{word}: shuffled is true or false")
            own.shuffled = text == "true"
        elif name == "seed":
            raise InputError(f"{word}: a comparison has seeds, for example seeds=5 or seeds=[3,4]")
        else:
            rest.append(word)
    own.variants = variants
    return own, rest


def _list(word: str, text: str) -> list[Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{word} is no list; write for example objective=[kd,dkd]") from error
    return value if isinstance(value, list) else [value]


def compare(words: Sequence[str], plain: Any) -> Failure | None:
    """Runs the comparison that the words of a command line ask for, or what is left of it, and reports.

    Args:
        words: overrides.
        plain: from a composed configuration to plain containers.

    Returns:
        Why a run failed, if any did; the others go on.

    Raises:
        InputError: anything in the words that cannot work.
    """
    from kd.report import write

    own, rest = parse_options(words)
    cells = plan(own.objective, own.seeds, own.shuffled, own.variants or {})
    with initialize_config_dir(str(kd.CONFIG_DIR), version_base="1.3"):
        configs = {cell.label: plain(compose("train", _composed(cell, rest))) for cell in cells}
        with _told():
            prepared = prepare(configs, rest)
        folder = Path(own.study) if own.study else Path("runs/compare") / prepared.name
        for cell in {cell.label: cell for cell in cells if cell not in unfinished(cells, folder)}.values():
            check_same(configs[cell.label], folder / cell.folder, prepared.contents[cell.label])
        if unfinished(cells, folder):
            with _told():
                teach(configs)  # once nothing is left that could be refused
        folder.mkdir(parents=True, exist_ok=True)
        planned = {"words": list(words), "cells": [asdict(cell) for cell in cells]}
        write_text(folder / "plan.json", json.dumps(planned, indent=1) + "\n")
        failed = launch(cells, folder, rest)
    if failed and len(unfinished(cells, folder)) == len(cells):
        return failed[0]
    report = write(folder, folder)
    _board(folder, report.markdown())
    report.say()
    return failed[0] if failed else None


def launch(cells: Sequence[Cell], folder: Path, rest: Sequence[str]) -> list[Failure]:
    """Runs the cells without a finished run through Hydra's launcher; what failed."""
    left = unfinished(cells, folder)
    if done := len(cells) - len(left):
        Console(highlight=False).print(f"{done} of {len(cells)} runs are finished already, in {folder}")
    if not left:
        return []
    loader = GlobalHydra.instance().hydra
    assert loader is not None
    where = f"hydra.sweep.dir={folder}"
    master = loader.compose_config("train", [*QUIET, where, *_for_hydra(rest)], run_mode=RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader.config_loader, callbacks=callbacks_of(master))
    launcher = Plugins.instance().instantiate_launcher(config=master, hydra_context=context, task_function=_job)
    with _progress(cells, folder, len(left)):
        words = [cell.words(folder.name, [*QUIET, where, *rest]) for cell in left]
        returned: Sequence[JobReturn] = launcher.launch(words, 0)
    found = [(cell, job.return_value) for cell, job in zip(left, returned)]
    return [failure.of(cell.folder) for cell, failure in found if isinstance(failure, Failure)]


def _composed(cell: Cell, rest: Sequence[str]) -> list[str]:
    return [word for word in cell.words("", rest) if not word.startswith("hydra.sweep")]


def _for_hydra(words: Sequence[str]) -> list[str]:
    """The words that say how jobs are launched; the others are each cell's own."""
    return [word for word in words if word.lstrip("+~").startswith("hydra")]


def _job(config: DictConfig) -> float | Failure | None:
    from kd.process.compose import job_of, plain

    runtime = HydraConfig.get().runtime
    with job_of(config, swept=True) as job, exit_on_error(job):
        try:
            summary = run_cell(plain(config), Path(runtime.output_dir), runtime.choices.get("objective"))
        except Stopped:
            raise
        except Exception as error:
            return _failure(error, job)
    return summary["metrics"]["best"].get("val/acc")


def _failure(error: Exception, job: Job) -> Failure:
    first, code, cause = job.ended(classify(error)[0], error)
    line = classify(cause)[1] or write_traceback(cause, job.folder)
    return Failure(code, line if first else None)


@contextmanager
def _progress(cells: Sequence[Cell], folder: Path, left: int) -> Iterator[None]:
    """One bar over all cells, that counts the finished run folders, whoever fills them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("runs"))
    stop = threading.Event()
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as bar:
        task = bar.add_task("compare", total=left)

        def watch() -> None:
            while not stop.wait(0.5):
                bar.update(task, completed=left - len(unfinished(cells, folder)))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            bar.update(task, completed=left - len(unfinished(cells, folder)))


@contextmanager
def _told() -> Iterator[None]:
    """What kd says of the teacher goes to the terminal, as no job has set up logging yet."""
    logger, handler = logging.getLogger("kd"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _board(folder: Path, text: str) -> None:
    """The report's table in TensorBoard's text tab, under the run ``report``."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "report")) as board:
        board.add_text("report", text)
