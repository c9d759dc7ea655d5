"""Training: the UltraPixel step and the base models beneath it, on any mesh (specification, section 12)."""
