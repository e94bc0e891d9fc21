"""Folders of the tests, and the search path of processes that import from them."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
FOLDERS = [TESTS, *sorted(path for path in TESTS.iterdir() if path.is_dir() and any(path.glob("*.py")))]
PYTHONPATH = os.pathsep.join(map(str, FOLDERS))
