"""Measures of pictures: FID, KID, IS, CLIP score and PickScore (docs/evaluation.md)."""
