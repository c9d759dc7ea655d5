"""UltraPixel in JAX/Flax: text to images of 1K to 6K pixels (Ren et al., NeurIPS 2024)."""

__version__ = "0.1.0"
