"""Tables, figures and one self-contained page from run records alone: no torch, no GPU, no data set."""

from anban.report.page import write_effects, write_report

__all__ = ["write_effects", "write_report"]
