"""The detectors by name. Importing this module imports no torch: a class is imported when it is asked for.

Every detector takes images (B, 3, H, W) and, in training, targets, and returns losses in training, boxes in evaluation; see
`retinanet.RetinaNet`.
"""

from __future__ import annotations

MODELS: dict[str, str] = {
    "retinanet-pvt": "anban.tasks.detect.models.retinanet:PVTRetinaNet",
    "retinanet-torchvision": "anban.tasks.detect.models.retinanet:TorchvisionRetinaNet",
}
"""Name in a recipe -> "module:class"."""
