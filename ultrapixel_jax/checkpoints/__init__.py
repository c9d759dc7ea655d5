"""What networks are made of on disk: checkpoints, runs, tokenizers."""
