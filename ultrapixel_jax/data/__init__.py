"""Training data: captioned images to records, records to batches of one size.

    python -m ultrapixel_jax.data.build SOURCE OUTPUT                captioned images to ArrayRecord
    python -m ultrapixel_jax.data.cache DATASET CHECKPOINT OUTPUT    and these to latents and text states

`loader.Loader` reads either; `config.DataConfig` says how.
"""
