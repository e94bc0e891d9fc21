"""The overrides of a command line, checked and expanded before Hydra reads them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

import kd
from kd.distill.objective import Term
from kd.errors import InputError
from kd.process._hydra import argument_parser
from kd.registry import defaults_of


def check_arguments() -> list[Override]:
    """Checks and expands the command line in ``sys.argv``, where flags may stand anywhere among the overrides.

    Refuses arguments that Hydra would accept, or would answer with a long message.

    Returns:
        The overrides as typed, parsed.

    Raises:
        InputError: an unknown flag, an argument that is no override, or a group's choice that is no name or is given
            twice.
    """
    parser = argument_parser()

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; options are written key=value, for example trainer.max_epochs=3")

    parser.error = refuse  # type: ignore[method-assign]
    arguments = parser.parse_intermixed_args()
    if arguments.experimental_rerun:
        raise InputError("--experimental-rerun runs a pickle; repeat the overrides, or set resume=RUN")
    flags = [argument for argument in sys.argv[1:] if argument not in arguments.overrides]
    parsed, expanded = expand(arguments.overrides)
    _check_choices(list(parsed.values()))
    sys.argv[1:] = flags + expanded
    return list(parsed.values())


def expand(overrides: Sequence[str]) -> tuple[dict[str, Override], list[str]]:
    """The overrides as typed, parsed; and those that Hydra gets in their place.

    A teacher that is a list of networks or a run folder becomes several overrides.

    Raises:
        InputError: an argument that is no override.
    """
    # kd-compare's variants are lists of overrides, which Hydra's grammar does not know
    parsed = {override: _parsed(override) for override in overrides if not override.startswith("+variants.")}
    expanded = [each for override in overrides for each in _teachers(override, parsed)]
    return parsed, [_with_plus(override) for override in expanded]


def _teachers(override: str, parsed: Mapping[str, Override]) -> list[str]:
    """The overrides for a teacher that is a list of networks or a run folder; any other override as it is."""
    of_teacher = override in parsed and parsed[override].key_or_group in ("teacher", "teacher.checkpoint")
    if not of_teacher or (value := _text(parsed[override])) is None:
        return _several_teachers(override)
    from kd.cli.teacher_overrides import expand_teacher  # imports Lightning, which takes seconds

    values = {each.key_or_group: each.value() for each in parsed.values() if not each.is_sweep_override()}
    return expand_teacher(override, parsed[override].key_or_group, value, values, _choices())


def _text(override: Override) -> str | None:
    """The value of an override that is a string."""
    value = None if override.is_delete() or override.is_sweep_override() else override.value()
    value = value.text if isinstance(value, QuotedString) else value
    return value if isinstance(value, str) else None


def _choices() -> list[str]:
    stored = [name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get("teacher", {})]
    return stored + [path.stem for path in (kd.CONFIG_DIR / "teacher").glob("*.yaml")]


def _with_plus(override: str) -> str:
    """An option of a term with ++, as a custom yaml need not list the options that every term has."""
    options = "|".join(defaults_of(Term))
    return f"++{override}" if re.match(rf"objective\.[^.=]+\.({options})=", override) else override


def _parsed(text: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        message = " ".join(str(error).split())
        raise InputError(f"Error parsing override {text!r}: {message}; options are written key=value") from error
    if override.key_or_group == "hydra.run.dir" and not override.value():
        raise InputError(f"{text} names no folder")
    return override


def _check_choices(overrides: list[Override]) -> None:
    chosen = [each for each in overrides if not each.is_delete() and _is_group(each.key_or_group)]
    for each in chosen:
        value = each.value()
        if not value or not (isinstance(value, (str, list)) or each.is_sweep_override()):
            raise InputError(f"{each.input_line}: {each.key_or_group} takes the name of a choice; see kd-train --help")
    for key, times in Counter(each.get_key_element() for each in chosen).items():
        if times > 1:
            typed = " and ".join(str(each.input_line) for each in chosen if each.get_key_element() == key)
            raise InputError(f"{key.lstrip('+')} is chosen {times} times: {typed}; give one of them")


def _is_group(name: str) -> bool:
    return isinstance(ConfigStore.instance().repo.get(name), dict) or (kd.CONFIG_DIR / name).is_dir()


def _several_teachers(override: str) -> list[str]:
    """``teacher=[a,b]`` as the choice ``ensemble`` with members; any other override as it is."""
    match = re.fullmatch(r"teacher=\[([\w, ]*)\]", override)
    if match is None:
        return [override]
    if not match[1].strip():
        raise InputError(f"{override} names no teacher; for none, set teacher=none")
    chosen: list[str] = []
    expanded = ["teacher=ensemble"]
    for choice in filter(None, (part.strip() for part in match[1].split(","))):
        chosen.append(choice)
        times = chosen.count(choice)
        name = f"{choice}_{times}" if times > 1 else choice
        expanded.append(f"+teacher@teacher.members.{name}={choice}")
    return expanded
