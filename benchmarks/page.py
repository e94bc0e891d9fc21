from typing import Any
from pathlib import Path


def write_page(known: dict[str, Any], page: Path) -> None: ...
