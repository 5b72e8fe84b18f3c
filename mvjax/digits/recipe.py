"""The digits world's training run; `experiments/digits.py` and the quickstart use these values."""

from __future__ import annotations

from mvjax.config import schema, talking
from mvjax.digits import frozen_models, records


def digits() -> schema.Config:
    """Returns the run that teaches the tiny blind Moshi to see, in minutes on two CPU cores.

    The learning rate, the number of steps and the loss weights are ours, tuned on this world.
    """
    return schema.Config(
        frozen=frozen_models.FROZEN,
        model=frozen_models.MODEL,
        codec=frozen_models.CODEC,
        data=schema.DataConfig(
            root="data/digits",
            prepare=records.prepare,
            speech=(schema.Source(records.VISUAL),),
            speechless=(schema.Source(records.TEXT), schema.Source(records.VISUAL, weight=0.25)),
            small_talk=(schema.Source(records.SMALL_TALK),),
            speech_rows=8,
            speechless_rows=24,
            speech_frames=112,
            speechless_tokens=32,
            p_concat=0.25,
        ),
        loss=schema.LossConfig(text_padding_weight=0.25, semantic_weight=10.0, audio_weight=0.3),
        optim=schema.OptimConfig(
            learning_rate=2.5e-3, warmup_steps=20, final_lr_fraction=0.05, weight_decay=0.1
        ),
        train=schema.TrainConfig(steps=400, log_every=10, checkpoint_every=100, remat="none"),
        # questions come early in its dialogues, and the longest answer takes 4 s; greedy, as it is evaluated
        talk=talking.TalkConfig(
            lead_in=0.32, tail=5.12, text_temperature=0.0, audio_temperature=0.0, voice="en-us+m2"
        ),
    )
