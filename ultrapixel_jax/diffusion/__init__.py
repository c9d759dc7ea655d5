"""Diffusion in terms of logSNR: schedules, losses, samplers, guidance (§5, §6)."""
