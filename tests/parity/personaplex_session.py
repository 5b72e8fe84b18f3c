"""Runs NVIDIA's runtime after a prompt: `personaplex_session.py CHECKOUT WEIGHTS IN.npz OUT.npz`.

A process of its own, because its package has the name of Kyutai's, `moshi`.
"""

import sys

import numpy as np
import torch


def main(checkout: str, weights: str, given: str, out: str) -> None:
    sys.path.insert(0, f"{checkout}/moshi")
    from moshi.models import lm, loaders

    d = {name: value for name, value in np.load(given).items()}
    sizes = {name: int(d[name]) for name in d if name not in ("voice", "role", "user")}
    model = lm.LMModel(device="cpu", dtype=torch.float32, **(loaders._lm_kwargs | sizes))
    loaded = loaders.load_file(weights)
    assert model.load_state_dict(loaded, strict=True)
    session = lm.LMGen(
        model.eval(),
        device="cpu",
        use_sampling=False,
        audio_silence_frame_cnt=6,
        sample_rate=24_000,
        text_prompt_tokens=d["role"].tolist(),
        return_logits=True,
    )
    voice = torch.from_numpy(d["voice"])[None]
    session.voice_prompt_audio = voice  # any: its codes are given
    session._encode_voice_prompt_frames = lambda mimi: voice.split(1, dim=2)
    session.streaming_forever(1)
    tokens, text_logits, audio_logits = [], [], []
    with torch.no_grad():
        session.step_system_prompts(None)
        for codes in torch.from_numpy(d["user"])[None].split(1, dim=2):
            frame, logits = session.step(codes)
            tokens.append(frame[0, :, 0].numpy())
            text_logits.append(logits[0][0, 0, 0].numpy())
            audio_logits.append(logits[1][0].numpy())
    np.savez(out, tokens=tokens, text_logits=text_logits, audio_logits=audio_logits)


if __name__ == "__main__":
    main(*sys.argv[1:])
