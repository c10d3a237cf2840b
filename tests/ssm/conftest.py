"""Tests of this folder import the oracle, which stands beside them and is no package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
