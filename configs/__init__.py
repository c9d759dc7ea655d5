"""One small file per configuration; each defines `config`."""
