"""Who speaks in the digits world: one assistant, and users of the training and of the test split."""

from __future__ import annotations

from mvjax.dialogues.speech import Voice

ASSISTANT = Voice("en-us", rate=185, pitch=45, pitch_range=45)

TRAIN_USERS = (
    Voice("en-us+m1", rate=185, pitch=40),
    Voice("en-us+m2", rate=175, pitch=50),
    Voice("en-us+m4", rate=190, pitch=45),
    Voice("en-us+m5", rate=180, pitch=35),
    Voice("en-us+m7", rate=185, pitch=55),
    Voice("en-us+m8", rate=175, pitch=45),
    Voice("en-us+f1", rate=180, pitch=50),
    Voice("en-us+f2", rate=190, pitch=60),
    Voice("en-us+f4", rate=175, pitch=45),
    Voice("en-us+f5", rate=185, pitch=55),
    Voice("en-us+steph", rate=180, pitch=50),
    Voice("en-us+adam", rate=180, pitch=45),
)

TEST_USERS = (Voice("en-us+m3", rate=182, pitch=45), Voice("en-us+f3", rate=182, pitch=52))
