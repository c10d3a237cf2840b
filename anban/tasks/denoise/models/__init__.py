"""The denoising networks by name. Importing this module imports no torch: a class is imported when asked for.

Every network takes the noisy images, (B, C, H, W), and returns the denoised ones of the same shape; a twin
network returns them with the noise and the content that its branches saw
(`anban.tasks.denoise.models.twin.Separated`).
"""

from __future__ import annotations

MODELS: dict[str, str] = {
    "twin": "anban.tasks.denoise.models.twin:Twin",
    "unet": "anban.tasks.denoise.models.unet:UNet",
    "red-cnn": "anban.tasks.denoise.models.redcnn:REDCNN",
}
"""Name in a recipe -> "module:class"."""

DISCRIMINATORS: dict[str, str] = {"patch": "anban.tasks.denoise.models.discriminator:PatchDiscriminator"}
"""The same for the critics of adversarial training."""
