"""Conversion between the released PyTorch checkpoints and ours: `python -m convert --help`."""
