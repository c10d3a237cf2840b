"""The thresholds of the audit: limits.yaml, each explained there, and what a user's own file changes of them.

A section belongs to a module, which states its settings as a frozen dataclass `Limits`: types and ranges stand there,
the values in the YAML.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anban.audit import checks
from anban.recipe.schema import Arguments, bind, construct, resolve, unknown
from anban.recipe.yamlfile import read
from anban.record.files import to_json

DEFAULTS = Path(__file__).with_name("limits.yaml")

#: Section of the YAML -> the dataclass that holds it.
SECTIONS = {
    "picture": "anban.audit.picture:Limits",
    "archives": "anban.audit.archives:Limits",
    "duplicates": "anban.audit.duplicates:Limits",
    "clean": "anban.audit.telling:Limits",
    "page": "anban.audit.page:Limits",
    "run": "anban.audit.run:Limits",
    **{name: f"anban.audit.checks.{name}:Limits" for name in checks.NAMES},
}


def read_limits(changes: Path | None = None) -> dict[str, Any]:
    """Section -> its `Limits`.

    Args:
        changes: a YAML file with the keys that are to differ.

    Raises:
        InputError: an unknown section or key, a wrong type, or a value outside its range.
    """
    values = read(DEFAULTS)
    for section, keys in (read(changes) if changes else {}).items():
        if section not in SECTIONS:
            raise unknown("section", section, SECTIONS, changes)
        values[section] = {**values[section], **(keys or {})}
    bound, _ = bind({name: Arguments(address) for name, address in SECTIONS.items()}, values)
    return {name: construct(resolve(address), bound[name]) for name, address in SECTIONS.items()}


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A short name for whatever the findings depend on: where it differs, files are looked at again."""
    return hashlib.sha256(to_json(parts).encode()).hexdigest()[:16]
