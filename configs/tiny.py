"""The whole cascade with the layout of the full model and a few hundred thousand parameters.

For tests, and what `sample.py` fills with weights made from names where there is no checkpoint.
"""

from ultrapixel_jax.placeholder import config

__all__ = ["config"]
