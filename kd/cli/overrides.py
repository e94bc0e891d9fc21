"""The overrides of a command line, checked before Hydra reads them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

import kd
from kd.distill.objective import Term
from kd.errors import InputError
from kd.registry import defaults_of


def check_words() -> list[Override]:
    """Refuses words of the command line that Hydra takes, or answers at length; flags may stand anywhere among them.

    Returns:
        The overrides.

    Raises:
        InputError: an unknown flag, what is no override, or a group's choice that is no name or said twice.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; options are written key=value, for example trainer.max_epochs=3")

    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_intermixed_args()
    if given.experimental_rerun:
        raise InputError("--experimental-rerun runs a pickle; give the overrides again, or resume=RUN")
    flags = [word for word in sys.argv[1:] if word not in given.overrides]
    # kd-compare's variants are lists of overrides, which Hydra's grammar does not know
    parsed = {word: _parsed(word) for word in given.overrides if not word.startswith("+variants.")}
    words = [word for override in given.overrides for word in _teachers(override, parsed)]
    _check_choices(list(parsed.values()))
    sys.argv[1:] = flags + [_with_plus(word) for word in words]
    return list(parsed.values())


def _teachers(word: str, parsed: Mapping[str, Override]) -> list[str]:
    """The words for a teacher that is a list of networks or a run folder; any other word as it is."""
    of_teacher = word in parsed and parsed[word].key_or_group in ("teacher", "teacher.checkpoint")
    if not of_teacher or (value := _text(parsed[word])) is None:
        return _several_teachers(word)
    from kd.cli.teachers import expanded  # which imports Lightning, and that takes seconds

    spoken = {each.key_or_group: each.value() for each in parsed.values() if not each.is_sweep_override()}
    return expanded(word, parsed[word].key_or_group, value, spoken, _choices())


def _text(word: Override) -> str | None:
    """The value of an override that is a string."""
    value = None if word.is_delete() or word.is_sweep_override() else word.value()
    value = value.text if isinstance(value, QuotedString) else value
    return value if isinstance(value, str) else None


def _choices() -> list[str]:
    stored = [name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get("teacher", {})]
    return stored + [path.stem for path in (kd.CONFIG_DIR / "teacher").glob("*.yaml")]


def _with_plus(word: str) -> str:
    """A term's key with ++, as a yaml of the user's own need not list what every term has."""
    return f"++{word}" if re.match(rf"objective\.[^.=]+\.({'|'.join(defaults_of(Term))})=", word) else word


def _parsed(word: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        said = " ".join(str(error).split())
        raise InputError(f"Error parsing override {word!r}: {said}; options are written key=value") from error
    if override.key_or_group == "hydra.run.dir" and not override.value():
        raise InputError(f"{word} names no folder")
    return override


def _check_choices(given: list[Override]) -> None:
    chosen = [each for each in given if not each.is_delete() and _is_group(each.key_or_group)]
    for each in chosen:
        value = each.value()
        if not value or not (isinstance(value, (str, list)) or each.is_sweep_override()):
            raise InputError(f"{each.input_line}: {each.key_or_group} takes the name of a choice; see kd-train --help")
    for key, times in Counter(each.get_key_element() for each in chosen).items():
        if times > 1:
            words = " and ".join(str(each.input_line) for each in chosen if each.get_key_element() == key)
            raise InputError(f"{key.lstrip('+')} is chosen {times} times: {words}; give one of them")


def _is_group(name: str) -> bool:
    return isinstance(ConfigStore.instance().repo.get(name), dict) or (kd.CONFIG_DIR / name).is_dir()


def _several_teachers(override: str) -> list[str]:
    """``teacher=[a,b]`` as the choice ``ensemble`` with members; anything else as it is."""
    match = re.fullmatch(r"teacher=\[([\w, ]*)\]", override)
    if match is None:
        return [override]
    if not match[1].strip():
        raise InputError(f"{override} names no teacher; teacher=none is none")
    chosen: list[str] = []
    words = ["teacher=ensemble"]
    for choice in filter(None, (part.strip() for part in match[1].split(","))):
        chosen.append(choice)
        again = chosen.count(choice)
        name = f"{choice}_{again}" if again > 1 else choice
        words.append(f"+teacher@teacher.members.{name}={choice}")
    return words
