"""python -m anban.tasks.segment.demo FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

from anban.tasks.segment.demo import write_demo

if len(sys.argv) != 2:
    sys.exit("usage: python -m anban.tasks.segment.demo FOLDER")
print(write_demo(Path(sys.argv[1])))
