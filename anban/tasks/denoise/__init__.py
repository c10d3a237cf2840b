"""CT denoising: a low-dose slice in, the slice at full dose out, with the noise that was between them."""

PREFIX = "ct"
