"""The README.md of an export: what the model is, where it comes from, how good it is, how to serve it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mvjax import files, run_folder, tree
from mvjax.config import schema
from mvjax.export import deviations, licenses, server_matrix, serving, targets
from mvjax.runtimes import loading
from mvjax.weights import file_names

UNCERTIFIED = "none yet"  # what the card says until `certificate.certify` has compared
_HUB = "hf://"
_BEGIN, _END = "<!-- mvjax certificate -->", "<!-- /mvjax certificate -->"
_LIBRARY = {"torch": "pytorch", "mlx": "mlx", "candle": "candle"}


@dataclasses.dataclass(frozen=True)
class RunResults:
    """What a run measured."""

    step: int  # of the checkpoint that is exported
    tables: Mapping[
        str, Sequence[Mapping[str, Any]]
    ]  # {name of the file: rows} of `RUN/eval/*.json`


def read_results(run: Path, *, step: int) -> RunResults:
    """Returns the tables in `RUN/eval/*.json` of one step; files without a table are passed over."""
    tables = {}
    for path in sorted((run / run_folder.EVAL).glob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.get("table") and content.get("step") == step:
            tables[path.stem] = content["table"]
    return RunResults(step, tables)


def state(folder: Path, said: str) -> None:
    """Lets an export's card say this of its certificate; a card without a place for it stays as it is."""
    path = folder / file_names.CARD
    if not path.is_file():
        return
    before, begin, rest = path.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        files.write_atomic(path, f"{before}{_certificate(said)}{after}".encode())


def _certificate(said: str) -> str:
    head, *more = said.splitlines()
    listed = "".join(f"\n- {line.strip()}" for line in more)
    return f"{_BEGIN}\n**Certificate: {head}**\n{listed}\n{_END}"


def text(
    params: tree.Tree,
    config: schema.Config,
    target: targets.Target,
    *,
    dtype: schema.Dtype | None,
    quantization: targets.Quantization | None,
    results: RunResults | None,
) -> str:
    """Returns the card, with the metadata that the Hugging Face Hub reads."""
    model = config.model
    adapters, _ = tree.partition(params, config.train.trained)
    differences = deviations.deviations(model, target, quantization)
    frozen_licenses = licenses.licenses(config.frozen)
    return _CARD.format(
        metadata=yaml.safe_dump(_metadata(config, target, quantization), sort_keys=False),
        upstream=targets.UPSTREAM[target],
        certificate=_certificate(UNCERTIFIED),
        count=_count(params),
        trained=_count(adapters),
        patterns=", ".join(f"`{pattern}`" for pattern in config.train.trained),
        stored=_stored(params, dtype, quantization),
        backbone=model.backbone,
        depformer=model.depformer,
        siglip=model.siglip,
        adapters=model.cross_attention,
        sources="\n".join(
            f"| {name} | {_shown(getattr(config.frozen, name))} | {stated} |"
            for name, stated in frozen_licenses.items()
        ),
        non_commercial=_non_commercial(frozen_licenses),
        steps=_DEPTH_STEPS.format(steps=model.codebooks_out, streams=model.codebooks - 1)
        if server_matrix.has_release_sizes(model)
        else "",
        training=_training(config, results),
        results=_results(results),
        extras=f"serve,{loading.EXTRAS[target]}",
        use=serving.text(model, target, quantization),
        differences="\n".join(f"- {note}" for note in differences) or "Nowhere.",
        lossy=_LOSSY if quantization or dtype else "",
    )


def _metadata(
    config: schema.Config, target: targets.Target, quantization: targets.Quantization | None
) -> dict[str, Any]:
    """The front matter; base models only where the config names them on the Hub."""
    bases = [
        location.removeprefix(_HUB).split("@")[0].split("/")[:2]
        for location in (config.frozen.moshi, config.frozen.siglip)
        if location.startswith(_HUB)
    ]
    known = {
        "base_model": ["/".join(base) for base in bases],
        "base_model_relation": "finetune" if quantization is None else "quantized",
    }
    return {
        "license": "other",
        "license_name": "mixed",
        "license_link": f"{file_names.CARD}#licenses",
        "language": licenses.languages(config.frozen.moshi),
        "library_name": _LIBRARY[target],
        "pipeline_tag": "any-to-any",
        "tags": ["moshi", "speech-to-speech", "vision", "cross-attention", "mvjax"],
        **(known if bases else {}),
    }


def _count(params: tree.Tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in tree.flatten(params).values())


def _stored(
    params: tree.Tree, dtype: schema.Dtype | None, quantization: targets.Quantization | None
) -> str:
    kept = sorted({np.dtype(leaf.dtype).name for leaf in tree.flatten(params).values()})
    return quantization or dtype or ", ".join(kept)


def _shown(location: str) -> str:
    """A location without the folders of the machine that trained."""
    known = location.startswith((_HUB, "package:"))
    return f"`{location if known else Path(location).name}`"


def _non_commercial(frozen_licenses: Mapping[str, str]) -> str:
    names = licenses.non_commercial(frozen_licenses)
    return f"**Not for commercial use**, by the license of {', '.join(names)}.\n\n" if names else ""


def _training(config: schema.Config, results: RunResults | None) -> str:
    step = "an unknown number of" if results is None else f"{results.step:,}"
    data = config.data
    parts = (data.speech, data.speechless, data.small_talk)
    sources = dict.fromkeys(source.name for part in parts for source in part)
    often = f", in one step of {data.speech_every}" if data.speech_every > 1 else ""
    return (
        f"{step} steps of {data.speech_rows} rows of speech ({data.speech_frames} frames of 80 ms{often})"
        f" and {data.speechless_rows} of text ({data.speechless_tokens} tokens); AdamW,"
        f" learning rate {config.optim.learning_rate:g}."
        + (f" Records: {', '.join(sources)}." if sources else "")
    )


def _results(results: RunResults | None) -> str:
    if results is None or not results.tables:
        return "No results were in the run folder."
    return "\n\n".join(f"`{name}`\n\n{_markdown(rows)}" for name, rows in results.tables.items())


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_value(row.get(key)) for key in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_DEPTH_STEPS = """
Do not place these weights in a PersonaPlex runtime. It has {streams} depth steps; given
these {steps} it loads without an error and predicts the user's speech with copies of them.
"""

_LOSSY = """
The weights were rounded to be stored so. `certificate.json` says what that costs: error of the logits and
agreement of greedy tokens with the model as trained, under `loss`, unless it was not run.
"""

_CARD = """---
{metadata}---

# A vision-speech model, in the layout of {upstream}

It listens and talks at the same time, and sees one image. Trained and written by mvjax, after MoshiVis
([arXiv 2503.15633](https://arxiv.org/abs/2503.15633)): the speech model and the image encoder are frozen,
gated cross-attention between them was trained.

{count:,} parameters, of which {trained:,} were trained; stored as {stored}.
{certificate}

`certificate.json` compares these files, reloaded, with the JAX model that wrote them. Its verdict is pass,
lossy (right, and rounded to be stored so), fail, or not run: the weights were read back and compared, but no
runtime has computed with them.
{lossy}
| part | sizes |
|---|---|
| backbone | `{backbone}` |
| depth transformer | `{depformer}` |
| image encoder | `{siglip}` |
| cross-attention | `{adapters}` |

## Where it comes from

| frozen part | source | license |
|---|---|---|
{sources}

Trained: the parameters {patterns}. {training}

## Results

{results}

## How to serve it

In the browser, or from files to files, by mvjax (`pip install 'mvjax[{extras}]'`), which reads all sizes from
this folder:

    mvjax serve .
    mvjax talk . --image photo.png --audio question.wav --out answer.wav

From Python:

    from pathlib import Path
    from mvjax.runtimes import loading
    model = loading.open_folder(Path("this folder"))
    session = model.session(model.encode_image(pixels))  # then session.step(user_codes), every 80 ms

{use}
{steps}
## Where {upstream} differs from the model as trained

{differences}

## Licenses

{non_commercial}These files hold the work of several: each frozen part under its license in the table
above. The adapters are the work of whoever trained them, who names their license here before publishing.
"""
