"""Private parts of Hydra and OmegaConf, each behind a function; as of hydra-core 1.3.8 and omegaconf 2.3.1."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, Node


def argument_parser() -> ArgumentParser:
    """The parser of Hydra's own command line: overrides, and flags such as ``--multirun``."""
    return get_args_parser()


def callbacks_of(config: DictConfig) -> Callbacks:
    """Hydra's callbacks as ``hydra.callbacks`` configures them, which a launcher needs."""
    return Callbacks(config)


def shared_store() -> ConfigStore:
    """Hydra's store of configuration nodes, which is no longer copied as a whole for each lookup.

    ``ConfigStoreRepository`` deep-copies it, a hundred times for ``--help``. Nodes are copied when they are read.
    """
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]
    return store


def key_of(node: Node) -> Any:
    """The key of a node in its parent."""
    return node._key()
