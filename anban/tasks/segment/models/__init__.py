"""The segmentation networks by name. Importing this module imports no torch: a class is imported when it is asked for.

Every network takes normalised images (B, 3, H, W) and returns the scores of the classes (B, K, H, W); while it trains, a list:
those scores and then the ones of its auxiliary heads, all at the size of the images.
"""

from __future__ import annotations

MODELS: dict[str, str] = {
    "bisenetv1": "anban.tasks.segment.models.bisenet.network:BiSeNetV1",
    "bisenetv2": "anban.tasks.segment.models.bisenetv2:BiSeNetV2",
}
"""Name in a recipe -> "module:class"."""
