"""The version of this package; a picture carries it."""

__version__ = "0.1.0"
