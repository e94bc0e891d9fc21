"""``python -m kd.models 'resnet*'``: the networks by name, with their parameters and multiply-accumulates."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from kd.errors import InputError, unknown
from kd.models.cost import size_of
from kd.models.hub import standard_arguments
from kd.models.normalized import InputSpec
from kd.registry import load_plugins, models, parameters

HUBS = ("torchvision", "timm")


def find_models(pattern: str, classes: int, shape: list[int]) -> dict[str, Callable[[], nn.Module]]:
    """Constructors of the networks whose names match ``pattern``, as in a shell; ``timm:vit_tiny*`` searches a library.

    Raises:
        InputError: nothing matches; the nearest name is given.
    """
    library, _, inner = pattern.partition(":")
    if library in HUBS:
        names = _listed(library)
        make = models[library]
        makers: dict[str, Any] = {name: lambda name=name: make(name, classes, shape[0]) for name in names}
    else:
        inner, supplied = pattern, standard_arguments(classes, shape)
        zoo = {name: models[name] for name in models if name not in (*HUBS, "import")}
        makers = {
            name: lambda f=f: f(**{key: value for key, value in supplied.items() if key in parameters(f)})
            for name, f in zoo.items()
        }
    matching = fnmatch.filter(sorted(makers), inner)
    if not matching:
        raise unknown("model", inner, makers)
    return {name: makers[name] for name in matching}


def _listed(library: str) -> list[str]:
    try:
        package = import_module("torchvision.models" if library == "torchvision" else "timm")
    except ImportError as error:
        raise InputError(f"{library} is not installed: pip install 'kd-lightning[{library}]'") from error
    return package.list_models(module=package) if library == "torchvision" else package.list_models()


def main(arguments: list[str] | None = None) -> None:
    """Prints the table; nothing is downloaded or computed, as the networks are on torch's meta device."""
    parser = argparse.ArgumentParser(prog="python -m kd.models", description=__doc__)
    parser.add_argument("patterns", nargs="*", default=["*"], help="as in a shell: 'wrn*', 'timm:vit_tiny*'")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="3 32 32; of libraries 3 224 224")
    options = parser.parse_args(arguments)
    load_plugins()
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("name", min_width=20)
    for column in ("parameters", "MACs"):
        table.add_column(column, justify="right", min_width=16)
    for pattern in options.patterns:
        shape = options.shape or ([3, 224, 224] if pattern.startswith(HUBS) else [3, 32, 32])
        for name, make in find_models(pattern, options.classes, shape).items():
            table.add_row(name, *_counts(make, shape))
    Console(highlight=False, soft_wrap=True).print(table)


def _counts(make: Callable[[], nn.Module], shape: list[int]) -> tuple[str, str]:
    try:
        with torch.device("meta"):
            network = make()
            side = getattr(network, "pixels", InputSpec()).size
            size = size_of(network, [shape[0], side, side] if side else shape)
    except Exception as error:
        return "-", f"{type(error).__name__} at {'x'.join(map(str, shape))}"
    return f"{size['parameters']:,}", f"{size['macs'] / 1e6:,.1f} million"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
