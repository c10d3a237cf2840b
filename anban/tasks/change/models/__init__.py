"""The change networks by name. Importing this module imports no torch: a class is imported when it is asked for.

Every network takes two images of the same place, (B, C, H, W) each, earlier first, and returns raw scores:
(B, 1, H, W), the logit of change, or (B, 2, H, W), class scores with class 1 = change.
"""

from __future__ import annotations

MODELS: dict[str, str] = {
    "fc-ef": "anban.tasks.change.models.fc:FCEF",
    "fc-siam-conc": "anban.tasks.change.models.fc:FCSiamConc",
    "fc-siam-diff": "anban.tasks.change.models.fc:FCSiamDiff",
    "tinycd": "anban.tasks.change.models.tinycd:TinyCD",
    "bit": "anban.tasks.change.models.bit:BIT",
    "stnet": "anban.tasks.change.models.stnet:STNet",
    "snunet": "anban.tasks.change.models.snunet:SNUNet",
    "ifnet": "anban.tasks.change.models.ifnet:IFNet",
    "a2net": "anban.tasks.change.models.a2net:A2Net",
    "aernet": "anban.tasks.change.models.aernet:AERNet",
    "changeformer": "anban.tasks.change.models.changeformer:ChangeFormer",
    "mambabcd": "anban.tasks.change.models.mambabcd:MambaBCD",
    "rs-mamba": "anban.tasks.change.models.rs_mamba:RSMamba",
    "cdmamba": "anban.tasks.change.models.cdmamba:CDMamba",
    "hanet": "anban.tasks.change.models.hanet:HANet",
    "cgnet": "anban.tasks.change.models.cgnet:CGNet",
    "hcgmnet": "anban.tasks.change.models.cgnet:HCGMNet",
}
"""Name in a recipe -> "module:class"."""
