"""What a distillation step costs beside a hand-written loop: one command, on a CPU or a GPU.

    python benchmarks/step.py --quick
    python benchmarks/step.py --json FILE --only live --pairs 'resnet56->resnet20'      a piece; FILE keeps the others
    python benchmarks/step.py --json FILE --page docs/performance.md                    all of it, and the page's tables

In one process every variant takes one step in turn, round after round, so that whatever else the machine does falls on
all alike; what is printed is the median of each round's (time of the variant / time of the bare loop), with the
quartiles. The bare loop is the step of RepDistiller and mdistiller without their meters, in float32, on prepared
batches; kd's step is all that happens between two batches of kd-train: augmentation, normalisation, both networks, the
update, guards, schedule and TensorBoard.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from alternatives import forwards, processes, updates
from growth import costs_of_kl, growth, peaks, startup
from harness import LARGE, OFF, configured, data_of, summed, turns
from machine import about, conv_peak, has_bf16, matmul_peak, peak_bytes
from paced import Bare, Fit, Own
from page import write_page
from rival import INSTALLED, Torchdistill
from torch.utils.flop_counter import FlopCounterMode

PAIRS = ("resnet56->resnet20", "wrn_40_2->wrn_16_2", "resnet32x4->resnet8x4")
ALONE = ("teacher=none", "objective=ce")
MIXED = ("trainer.precision=bf16-mixed",)
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "live": {
        "as written": (*OFF, "speed=plain"),
        "channels_last": (*OFF, "speed=plain", "speed.channels_last=true"),
        "default": OFF,
        "teacher_precision=bf16": (*OFF, "speed.teacher_precision=bf16"),
        "bf16-mixed": (*OFF, *MIXED),
        "recompute": (*OFF, "speed.recompute=true"),
    },
    "cached": {
        "cached": (),
        "student only": ALONE,
        "cached, bf16-mixed": MIXED,
        "student only, bf16-mixed": (*ALONE, *MIXED),
    },
    "compiled": {
        "compile=teacher": (*OFF, "speed.compile=teacher"),
        "compile=true": (*OFF, "speed.compile=true"),
        "bf16-mixed, compile=true": (*OFF, *MIXED, "speed.compile=true"),
        "cached, bf16-mixed, compile=true": (*MIXED, "speed.compile=true"),
    },
}
OWN = ("default", "cached", "bf16-mixed", "cached, bf16-mixed")  # also measured without Lightning


def variants(group: str, device: torch.device) -> dict[str, tuple[str, ...]]:
    """A group's, without bfloat16 where there are no instructions for it and a step takes several times as long."""
    return {name: words for name, words in GROUPS[group].items() if "bf16" not in name or has_bf16(device)}


def pair_of(pair: str, group: str, rounds: int, batch: int, device: torch.device) -> dict[str, Any]:
    """All variants of a group for one pair, beside the bare loop."""
    pixels, classes = (224, 1000) if pair == LARGE else (32, 100)
    data = data_of(pixels, classes, batch, rounds + 4)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as root:
        bare = Bare(configured(pair, root, accelerator, *OFF), data, device)
        runs: dict[str, Any] = {"bare": bare}
        if group == "live" and INSTALLED:
            runs["torchdistill's runner"] = Torchdistill(copy.deepcopy(bare), device)
        for name, overrides in variants(group, device).items():
            fit = Fit(configured(pair, root, accelerator, *overrides), data, root, bare)
            for _ in range(rounds + 4 if fit.cached else 1):  # a first epoch fills the table; one step compiles
                fit.step()
            runs[name] = fit
            if name in OWN:
                runs[f"{name}, without Lightning"] = Own(fit, device)
        taken = turns({name: run.step for name, run in runs.items()}, rounds)
        found: dict[str, Any] = {"steps": summed(taken), "batch": batch, "rounds": rounds}
        for name in OWN:
            if name in taken:
                found["steps"][name]["over_own"] = summed(taken, f"{name}, without Lightning")[name]["ratio"]
        if group == "live":
            found |= floor(bare, batch, device)
            own = {"bare": bare.step, "default": runs["default, without Lightning"].step}
            own["recompute"] = Own(runs["recompute"], device).step
            found["peak_mb"] = {name: round(peak_bytes(step, device) / 1e6, 1) for name, step in own.items()}
        for run in runs.values():
            run.stop()
    return found


def lightning(device: torch.device, rounds: int = 300) -> dict[str, float]:
    """Milliseconds that Lightning, logging and guards take of a step: kd's, and the same arithmetic in a plain loop.

    Of networks so small that the difference is seen; of large ones it drowns in where their tensors happen to lie.
    """
    data = data_of(8, 10, 64, rounds + 20)
    with tempfile.TemporaryDirectory() as root:
        small = ("teacher.width=8", "student.width=8")
        fit = Fit(configured("mlp->mlp", root, "gpu" if device.type == "cuda" else "cpu", *OFF, *small), data, root)
        taken = turns({"own": Own(fit, device).step, "kd": fit.step}, rounds, 15)
        fit.stop()
    own, whole = (1000 * statistics.mean(taken[name]) for name in ("own", "kd"))
    return {"own_ms": round(own, 2), "kd_ms": round(whole, 2), "ms": round(whole - own, 2)}


def floor(bare: Bare, batch: int, device: torch.device) -> dict[str, Any]:
    """The counted arithmetic of a step, and its time at the machine's measured peaks."""
    with FlopCounterMode(display=False) as counter:
        bare.step()
    flops = counter.get_total_flops()
    kinds = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bf16(device) else {})
    best = {name: max(matmul_peak(kind, device), conv_peak(kind, device)) for name, kind in kinds.items()}
    return {
        "gflop": round(flops / 1e9, 1),
        "floor_ms": {name: round(1e3 * flops / top, 1) for name, top in best.items()},
    }


OTHERS: dict[str, Callable[[torch.device], Any]] = {
    "lightning": lightning,
    "growth": growth,
    "forwards": forwards,
    "updates": updates,
    "processes": processes,
    "kl": costs_of_kl,
    "peaks": peaks,
    "startup": startup,
}


def show(title: str, found: dict[str, Any]) -> None:
    print(f"\n{title}, batch {found['batch']}, {found['rounds']} rounds")
    for name, row in found["steps"].items():
        over = f"  {row['over_own']:.3f} of the same without Lightning" if "over_own" in row else ""
        print(f"  {name:44} {row['ms']:8.1f} ms  {row['ratio']:.3f}  ({row['low']:.3f} to {row['high']:.3f}){over}")
    for key in ("gflop", "floor_ms", "peak_mb"):
        if key in found:
            print(f"  {key}: {found[key]}")


def keep(known: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small pair and few rounds: a minute")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", nargs="*", default=None, help=f"default: {' '.join(PAIRS)}, and {LARGE} for live")
    parser.add_argument("--only", nargs="*", default=None, help=f"of {' '.join([*GROUPS, *OTHERS])}")
    parser.add_argument("--json", type=Path, help="keeps the figures there, beside those of other pieces")
    parser.add_argument("--page", type=Path, help="writes the tables of FILE into that page")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    known["machine"] = about(device)
    pieces = asked.only if asked.only is not None else (["live", "cached"] if asked.quick else [*GROUPS, *OTHERS])
    pairs = asked.pairs or (["resnet20->resnet8"] if asked.quick else [*PAIRS, LARGE])
    rounds = 8 if asked.quick else asked.rounds
    for piece in pieces:
        if piece in OTHERS:
            known[piece] = OTHERS[piece](device)
            print(f"\n{piece}", json.dumps(known[piece], indent=1))
        for pair in pairs if piece in GROUPS else ():
            if pair == LARGE and (piece != "live" or asked.quick):
                continue
            batch = 8 if pair == LARGE and device.type == "cpu" else asked.batch
            found = pair_of(pair, piece, 8 if pair == LARGE else rounds, batch, device)
            known.setdefault(piece, {})[pair] = found
            show(f"{pair}, {piece}", found)
            keep(known, asked.json)
        keep(known, asked.json)
    if asked.page:
        write_page(known, asked.page)


if __name__ == "__main__":
    main()
