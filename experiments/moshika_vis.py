"""How is the released MoshiVis trained? The conversational model, after the paper (arXiv 2503.15633).

    mvjax show experiments/moshika_vis.py
    mvjax plan experiments/moshika_vis.py --topology v5p:2x2x4 --pick v5p_2x2x4
    mvjax train experiments/moshika_vis.py --out runs/moshika_vis

Hardware and time: 8 x H100 for about one day (the paper's); the mesh of `config` shards over 8 devices.
`--pick` takes a TPU slice's mesh and remat policy, as `mvjax plan --fit` found them (BENCHMARKS.md), or
another variant by name.
Expected (paper, appendix B.2): OCR-VQA 60 with text questions and 53.3 with spoken ones, COCO CIDEr about 80.
Measured: not yet.

From the paper: the mixture within each kind of rows (table 7), 50,000 steps, 64 rows a step (4.3), two audio
codebooks in the loss (figure 3), adapters alone trained (3.1), and 25% speech, which its study of the ratio
recommends (4.1, figure 4). Table 7 by itself gives 30 of 84 in weight, 35.7%, that is 22.9 rows of 64:
`--pick table7_ratio` takes 24. The default is 16 and 48 rows because 25% is recommended and exact, and
because both numbers divide by 16.

Not in any source, so every value is our choice: optimizer, learning rate, schedule, weight decay, clipping,
training dtype, sequence lengths, and p_concat of the released model. Those of the optimizer are the
defaults of `mvjax/config/schema.py`. For weights and records see docs/weights-and-export.md and docs/data.md.
"""

import dataclasses

from mvjax.config import schema

# Paper, table 7: dataset and sampling weight, among the rows of its kind.
SPEECH = {"docci_prop": 5.0, "docci_loc": 5.0, "pixmo_lead1": 5.0, "pixmo_comb": 15.0}
SPEECHLESS = {
    "pixelprose_ts1": 15.0,
    "pixelprose_ts2": 15.0,
    "pixelprose_lead2": 15.0,
    "tallyqa": 1.0,
    "ocr_vqa": 5.0,
    "rendered_text": 1.0,
    "docvqa": 2.0,
}


def config() -> schema.Config:
    """The run; `model` and `loss` are the defaults, which are the reference's."""
    return schema.Config(
        frozen=schema.FrozenFiles(
            moshi="weights/moshika-pytorch-bf16",  # or another Moshi; codec and tokenizer lie in it
            siglip="weights/paligemma2-3b-pt-448-siglip.npz",
        ),
        model=schema.ModelConfig(dtype="bfloat16"),  # the checkpoints' dtype; of training: ours
        data=schema.DataConfig(
            root="data/moshika_vis",
            speech=_sources(SPEECH),
            speechless=_sources(SPEECHLESS),
            small_talk=(schema.Source("small_talk"),),
            speech_rows=16,  # 25% of 64 (paper, sections 4.1 and 4.3)
            speechless_rows=48,
            speech_frames=1250,  # ours: 100 s, as the example of moshi-finetune
            speechless_tokens=512,  # ours: the longest synthetic dialogue has 16 utterances
            p_concat=0.5,  # of the paper's 0 and 0.5 (figure 5); the released model's is unknown
            bad_record_budget=1000,  # ours
            workers=8,  # ours
        ),
        mesh=schema.MeshConfig(data=-1, fsdp=8),  # ours: one node of eight
        train=schema.TrainConfig(
            steps=50_000,  # paper, section 4.3
            remat="full",  # ours: fits everywhere; more memory allows less recomputation
            frozen_dtype="bfloat16",  # ours: the encoder's matrices are multiplied in it anyway
        ),
    )


def sweep() -> dict[str, schema.Config]:
    """Variants: the ratio of table 7, and TPU slices."""
    run = config()
    data = dataclasses.replace(run.data, speech_rows=24, speechless_rows=40)
    return {
        "table7_ratio": dataclasses.replace(run, data=data),
        "v5e_4x4": _on(run, (2, 8, 1), "frozen"),
        "v5e_8x8": _on(run, (16, 1, 4), "frozen"),
        "v5p_2x2x4": _on(run, (16, 1, 1), "frozen"),
        "v6e_4x4": _on(run, (16, 1, 1), "frozen"),
    }


def _on(run: schema.Config, mesh: tuple[int, int, int], remat: schema.Remat) -> schema.Config:
    data, fsdp, tensor = mesh
    return dataclasses.replace(
        run,
        mesh=schema.MeshConfig(data, fsdp, tensor),
        # one to three rows a chip: longer chunks, or the text head is read for 128 frames at a time
        train=dataclasses.replace(run.train, remat=remat, loss_chunk=640),
    )


def _sources(weights: dict[str, float]) -> tuple[schema.Source, ...]:
    return tuple(schema.Source(name, weight) for name, weight in weights.items())
