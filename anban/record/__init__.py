"""What a run leaves behind: its folder, its numbers, where it was made, and the ledger of all runs. No torch."""

from anban.record.ledger import Ledger, deciding_score
from anban.record.run import RunFolder, find_runs, readable
from anban.record.standing import standing

__all__ = ["Ledger", "RunFolder", "deciding_score", "find_runs", "readable", "standing"]
