"""Name tables, one file per network: which key of a released file is which of our arrays."""
