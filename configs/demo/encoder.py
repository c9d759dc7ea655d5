"""The demo's EffNet encoder, as an autoencoder with a previewer that is thrown away.

It puts colours and places into the latents, at one scale for all sizes of pictures, before stage B trains the
encoder further. Through stage B's noise alone, latents of large pictures came out four times those of small.
Tiles are read at 3/4 of their size, as stage B shows them to the encoder.
"""

import dataclasses

from configs.demo.previewer import config as previewer
from ultrapixel_jax.training.config import OptimizerConfig, PreviewerTask

config = dataclasses.replace(
    previewer,
    task=PreviewerTask(train_encoder=True),
    data=dataclasses.replace(previewer.data, areas=(192,)),
    steps=3000,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, schedule="cosine", ema_decay=0.998),
)
