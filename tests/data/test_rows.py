"""What the rows of a mixture hold, compared with the rows that training takes."""

import json
import re

import pytest
import toy_records

from mvjax import types
from mvjax.commands import data as data_command
from mvjax.data import examples, mixture, windows
from mvjax.data.inspect import rows
from mvjax.data.records import dataset

STEPS = 40
PIECE = re.compile(r"(\w+)/([\w-]+)\[(\d+):(\d+)\]")


def visual_record(config, id):
    reader = dataset.RecordReader(examples.record_path(config.data, "visual"), expected=None)
    return reader[reader.find(id)]


@pytest.mark.parametrize("frames", [toy_records.FRAMES, 24])
def test_speech_rows_are_those_of_training(config, frames, monkeypatch):
    config = toy_records.with_data(config, speech_frames=frames, p_concat=0.5, speechless_rows=0)
    batches = mixture.batches(config)
    batch_rows = [row for step in range(STEPS) for row in batches.ids(step)["speech"]]
    wanted = rows.RowCounts(rows=len(batch_rows), positions=frames * len(batch_rows))
    for name in batch_rows:
        pieces = [(a, b, int(c), int(d)) for a, b, c, d in PIECE.findall(name)]
        ((_, id, start, stop),) = (piece for piece in pieces if piece[0] == "visual")
        record = visual_record(config, id)
        end = windows.spoken_exchanges(record)[-1]
        wanted.whole += start == 0 and stop >= end
        wanted.start_cut += start > 0
        wanted.end_cut += stop < end
        wanted.filled += sum(d - c for _, _, c, d in pieces)
        wanted.targets += len(record.words)
        heard = [start <= int(word.start / types.FRAME_SECONDS) < stop for word in record.words]
        wanted.targets_cut += len(heard) - sum(heard)
    monkeypatch.setattr(examples.images, "decode", None)  # no image is decoded
    found = rows.count(config, rows=len(batch_rows))
    assert list(found) == ["speech"] and list(found["speech"]) == ["visual"]
    counts = found["speech"]["visual"]
    assert 0 < counts.switching < counts.rows and counts.whole > 0
    counts.switching = 0
    assert counts == wanted
    assert counts.start_cut > 0 and (counts.targets_cut > 0) == (frames == 24)


def test_speechless_rows_are_those_of_training(config):
    config = toy_records.with_data(config, speech_rows=0, speechless_tokens=9)
    batches = mixture.batches(config)
    steps = [batches[step].speechless for step in range(STEPS)]
    found = rows.count(config, rows=STEPS * config.data.speechless_rows)["speechless"]
    assert set(found) == {"text", "visual"}
    counts = rows.total(found)
    assert counts.rows == sum(len(part.codes) for part in steps)
    assert counts.positions == 9 * counts.rows
    assert counts.filled == sum((part.codes[:, 0] != types.ZERO_TOKEN).sum() for part in steps)
    kept = sum(part.loss_mask.sum() for part in steps)
    assert counts.targets - counts.targets_cut == kept and counts.targets_cut > 0
    assert counts.end_cut == counts.rows and counts.whole == counts.start_cut == 0
    room = toy_records.with_data(config, speechless_tokens=60)
    counts = rows.total(rows.count(room, rows=48)["speechless"])
    assert counts.whole == counts.rows == 48 and counts.targets_cut == 0


@pytest.mark.parametrize("p_concat", [0.0, 0.3])
def test_switching_is_the_share_that_p_concat_asks_for(config, p_concat):
    config = toy_records.with_data(config, p_concat=p_concat, speech_frames=60, speechless_rows=0)
    counts = rows.total(rows.count(config, rows=500)["speech"])
    assert counts.switching / counts.rows == pytest.approx(p_concat, abs=0.06)


def test_the_command_prints_shares_and_json(config, capsys, monkeypatch):
    monkeypatch.setattr(data_command.arguments, "load_experiment", lambda args: config)
    args = data_command.argparse.Namespace(rows=48, json=False)
    with pytest.raises(FileNotFoundError, match="expected records that are not there"):
        data_command.rows(args)  # it makes none
    mixture.ensure_records(config.data)
    assert data_command.rows(args) == 0
    printed = capsys.readouterr().out
    assert re.search(r"visual +48 +\d+\.\d%", printed) and "data.p_concat is 50.0%" in printed
    assert re.search(r"(?m)^all +48 ", printed)
    args.json = True
    assert data_command.rows(args) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["p_concat"] == config.data.p_concat
    whole = told["parts"]["speechless"]["all"]
    assert whole["counts"]["rows"] == 48
    shares = whole["shares"]
    assert shares["whole"] == whole["counts"]["whole"] / 48 and 0 <= shares["padding"] < 1
    args.rows = 0
    with pytest.raises(ValueError, match="--rows: expected 1 or more, got 0"):
        data_command.rows(args)
