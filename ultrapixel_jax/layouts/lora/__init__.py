"""LoRA files of every trainer to one form (`read.Lora`), and from it to the layouts that others read."""
