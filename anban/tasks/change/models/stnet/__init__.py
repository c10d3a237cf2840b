"""STNet, the notebook's own network: light, U-shaped, two dates that separate and integrate."""

from anban.tasks.change.models.stnet.network import STNet

__all__ = ["STNet"]
