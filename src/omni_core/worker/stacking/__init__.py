"""Several denoiser calls as one forward pass: how they are stacked, and how that is verified."""
