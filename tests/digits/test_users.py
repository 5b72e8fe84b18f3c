"""What users say for conversation health has the silences it claims, and the grammar hears the assistant."""

import numpy as np

from mvjax.dialogues import speech
from mvjax.digits import users, voices
from mvjax.eval.health import activity, checkup, recognize, timing


def test_recordings_have_their_pauses_and_room_to_greet():
    found = users.questions(per_kind=2, seed=3)
    assert [r.kind for r in found.about] == [*timing.KINDS] * 2 and len(found.unrelated) == 2
    heard = [
        timing.Channels(r.kind, 20.0, tuple(activity.spans(r.samples)), ())
        for r in (*found.about, *found.unrelated)
    ]
    turns = [timing.turns(c) for c in heard]
    assert [len(turn) for turn in turns[1]] == [2] and len(turns[2]) == 2
    (_, stops), (goes_on, _) = turns[1][0]
    assert 1.1 < goes_on - stops < 1.5
    assert [timing.opening(c) for c in heard] == [None, None, None, False, *[None] * 4]
    again = users.questions(per_kind=2, seed=3)
    assert [r.id for r in again.about] == [r.id for r in found.about]
    assert len({r.image.tobytes() for r in (*found.about, *found.unrelated)}) == 8
    assert isinstance(found, checkup.Questions)


def test_the_grammar_hears_the_assistants_sentences():
    hear = recognize.pocketsphinx(users.grammar(), users.PRONUNCIATIONS)
    texts = ["the digit is seven", "its colour is blue", "i am moshi"]
    silence = np.zeros(4800, np.float32)
    clips = [
        np.concatenate([silence, speech.speak(text, voices.ASSISTANT).samples, silence])
        for text in texts
    ]
    heard = hear(clips)
    assert recognize.word_errors(texts, heard)["word_error_rate"] <= 0.2
    assert hear(clips[1:]) == heard[1:]  # a clip's text does not depend on those before it
