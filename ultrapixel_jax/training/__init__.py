"""Training: the UltraPixel step and the base models beneath it, on any mesh (§12)."""
