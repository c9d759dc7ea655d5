"""A small captioned world drawn by code, which the demo cascade is trained on and measured with."""
