"""The rank of this process, and what started it."""

from __future__ import annotations

import hashlib
import os

LAUNCH, SWEPT = "KD_LAUNCH", "KD_SWEPT"  # inherited by child processes: the launch; the folder of a sweep's job
LAUNCHES = (  # set by torchrun and SLURM for the processes of a launch
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)


def started_outside() -> bool:
    """Whether torchrun or SLURM started this process as one of several."""
    slurm = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    tasks = os.environ.get("WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_NTASKS", "1")
    return ("TORCHELASTIC_RUN_ID" in os.environ or slurm) and int(tasks) > 1


def rank() -> int:
    """This process's rank within its job, 0 for the first or only one."""
    names = ("RANK", "SLURM_PROCID") if started_outside() else ("LOCAL_RANK",)
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def is_child() -> bool:
    """Whether Lightning started this process for the job of its parent."""
    return LAUNCH in os.environ and not started_outside() and rank() > 0


def launch() -> str:
    """A name that is shared by all processes of a launch, and by no other launch."""
    if not started_outside():
        return os.environ.get(LAUNCH, "")
    identity = [os.environ.get(name, "") for name in LAUNCHES]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        identity.append(str(os.getppid()))  # on one machine they share a parent
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
