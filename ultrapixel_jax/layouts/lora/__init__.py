"""LoRA files of every trainer to one form (`read.Lora`), and from it to the layouts that others read."""

LAYOUTS = ("ultrapixel", "stability", "comfyui")
"""That `write` writes: `comfyui` is OneTrainer's of 2024, which ComfyUI and other interfaces read; the others
are read by their trainers alone."""
