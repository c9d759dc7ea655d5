"""All mutants."""

from __future__ import annotations

from tests.mutants import diffusion, models, training

MUTANTS = (*training.MUTANTS, *diffusion.MUTANTS, *models.MUTANTS)
