"""The readers and the damage stand beside these tests, the fake study beside those of the report; none is a package."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "report")]
