"""Which process this is, and who started it."""

from __future__ import annotations

import hashlib
import os

LAUNCH, SWEPT = "KD_LAUNCH", "KD_SWEPT"  # what children inherit: their parent's launch; the folder of a sweep's job


LAUNCHES = (  # what torchrun and SLURM tell each launch's processes
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)


def started_outside() -> bool:
    """Whether torchrun or SLURM started this process, beside others."""
    slurm = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    tasks = os.environ.get("WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_NTASKS", "1")
    return ("TORCHELASTIC_RUN_ID" in os.environ or slurm) and int(tasks) > 1


def rank() -> int:
    """This process's number among those of its job, 0 for the first or only one."""
    names = ("RANK", "SLURM_PROCID") if started_outside() else ("LOCAL_RANK",)
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def is_child() -> bool:
    """Whether Lightning started this process for a job of another one."""
    return LAUNCH in os.environ and not started_outside() and rank() > 0


def launch() -> str:
    """A name that all processes of one launch know, and those of no other."""
    if not started_outside():
        return os.environ.get(LAUNCH, "")
    told = [os.environ.get(name, "") for name in LAUNCHES]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        told.append(str(os.getppid()))  # on one machine they have one parent
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
