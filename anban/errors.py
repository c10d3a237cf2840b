"""The one error a user is meant to read: what was found, where, what was expected, what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave (recipe, key, image, label, checkpoint, folder) cannot be used.

    The command line prints it as one message and ends with exit status 2.

    Args:
        what: what was found, as one sentence.
        where: the file, folder or key it was found in.
        expected: what would have been accepted.
        do: the next thing to try.
    """

    def __init__(
        self, what: str, *, where: object = None, expected: str | None = None, do: str | None = None
    ):
        self.what, self.where, self.expected, self.do = what, where, expected, do
        lines = [what]
        for label, value in (("where", where), ("expected", expected), ("do", do)):
            if value is not None:
                lines.append(f"  {label + ':':<10}{value}")
        super().__init__("\n".join(lines))
