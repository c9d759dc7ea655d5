"""A LoRA and a new word from 5 to 20 pictures of one subject, as UltraPixel's personalisation has it.

    python -m ultrapixel_jax.data.build FOLDER DATA --caption "a photo of [subject]"
    python train.py configs/train/personalize.py --sources CHECKPOINT --data.path DATA --output RUN
    python sample.py --checkpoint CHECKPOINT --lora RUN --prompt "[subject] on a beach" --size 2048x2048

`--model.lora.tokens "[name]=^dog</w>"` names another word, which starts from the mean embedding of the tokens
that the pattern finds. CHECKPOINT is what `python -m convert` wrote of stage C, UltraPixel's networks, CLIP's
text tower and the EffNet encoder. 3.1 million trained parameters. 5,000 updates at the low resolution, then
alternately so and at 2048² with guidance. More in docs/personalization.md.
"""

import dataclasses

from configs.full import config as full
from ultrapixel_jax.data.config import DataConfig
from ultrapixel_jax.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    PersonalTask,
    TrainConfig,
)

config = TrainConfig(
    task=PersonalTask(),
    model=dataclasses.replace(full, lora=dataclasses.replace(full.lora, tokens=("[subject]",))),
    data=DataConfig(areas=(2048,), batch_size=4, image_vector_probability=0.0, caption_dropout=0.05),
    steps=8_000,
    optimizer=OptimizerConfig(learning_rate=1e-4, ema_decay=0.99),
    checkpoints=CheckpointConfig(every=1000),
)
