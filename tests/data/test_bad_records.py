"""Bad records while training: replaced, counted, listed; past the budget the run stops."""

import logging
import re

import msgspec
import pytest
import toy_records

from mvjax import run_folder
from mvjax.data import examples, mixture
from mvjax.data.records import bad_records, dataset


def test_bad_records_are_replaced_within_the_budget(config, caplog):
    mixture.ensure_records(config.data)
    toy_records.spoil(config, "visual", [4, 5])
    config = toy_records.with_data(config, bad_record_budget=2)
    with caplog.at_level(logging.WARNING):
        one, two = mixture.batches(config), mixture.batches(config)
        for step in range(8):
            toy_records.assert_equal(one[step], two[step])
    logged = {re.search(r"visual\[(\d+)\]", m).group(1) for m in caplog.messages}
    assert logged == {"4", "5"}


def test_too_many_bad_records_stop_the_run_and_are_listed(config):
    mixture.ensure_records(config.data)
    toy_records.spoil(config, "visual", [4, 5])
    batches = mixture.batches(toy_records.with_data(config, bad_record_budget=1))
    with pytest.raises(ValueError, match=r"at most 1 bad records .* got 2") as caught:
        for step in range(20):
            batches[step]
    for number in (4, 5):
        assert f"visual[{number}]" in str(caught.value)


def test_a_bad_image_and_foreign_codes_are_bad_records(config, tmp_path):
    made_with = dataset.identity(config.frozen)
    good = toy_records.record(0, "visual")
    items = [
        msgspec.structs.replace(good, image=good.image[: len(good.image) // 2]),
        msgspec.structs.replace(good, id="loud", codes=b"\xff" * len(good.codes)),
        dataset.Record("mute", good.kinds, good.turns),
    ]
    path = examples.record_path(config.data, "visual")
    config.data.prepare(path.parent)
    dataset.write(path, items, made_with)
    batches = mixture.batches(toy_records.with_data(config, bad_record_budget=3, speechless_rows=0))
    with pytest.raises(ValueError, match="every one is bad"):
        batches[0]
    batches = mixture.batches(toy_records.with_data(config, bad_record_budget=2, speechless_rows=0))
    with pytest.raises(ValueError, match="at most 2 bad records") as caught:
        batches[0]
    for problem in (
        f"image: {len(good.image) // 2} bytes",
        "loud: expected 4 codebooks",
        "mute: expected 4 codebooks",
    ):
        assert problem in str(caught.value)


def test_bad_records_are_listed_once_and_count_over_resumes(config, tmp_path):
    mixture.ensure_records(config.data)
    toy_records.spoil(config, "visual", [4, 5])
    listing = tmp_path / "run" / run_folder.BAD_RECORDS
    config = toy_records.with_data(config, bad_record_budget=2)
    for _ in range(2):
        batches = mixture.batches(config, listing=listing)
        for step in range(8):
            batches[step]
    lines = [msgspec.json.decode(line) for line in listing.read_bytes().splitlines()]
    assert sorted(line["record"] for line in lines) == ["visual[4]", "visual[5]"]
    assert all(line["problem"] and line["id"] is None for line in lines)
    with listing.open("ab") as file:
        file.write(b'{"record": "cut sho')
    found = bad_records.BadRecords(2, listing)
    found.add("visual[4]", ValueError("again"))
    with pytest.raises(ValueError, match="at most 2 bad records"):
        found.add("visual[6]", ValueError("third"))


def test_words_that_the_tokenizer_does_not_know_are_bad_records(config, tmp_path):
    made_with = dataset.identity(config.frozen)
    strange = dataset.Turn("assistant", "the digit is \u4e03")
    items = [msgspec.structs.replace(toy_records.record(0, "text", spoken=False), turns=(strange,))]
    config.data.prepare(examples.record_path(config.data, "text").parent)
    dataset.write(examples.record_path(config.data, "text"), items, made_with)
    listing = tmp_path / run_folder.BAD_RECORDS
    with pytest.raises(ValueError, match="text-0: the tokenizer does not know"):
        mixture.batches(config, listing=listing)[0]
    assert msgspec.json.decode(listing.read_bytes())["id"] == "text-0"


def test_a_damaged_line_of_the_list_is_named_and_costs_nothing(tmp_path, caplog):
    listing = tmp_path / run_folder.BAD_RECORDS
    lines = [b'{"record": "a[1]", "problem": "x"}', b"\xff", b'{"record": "a[2]", "problem": "y"}']
    listing.write_bytes(b"\n".join([*lines, b""]))
    found = bad_records.BadRecords(2, listing)
    assert f"{listing}:2: expected a bad record" in caplog.text
    with pytest.raises(ValueError, match="at most 2 bad records.*got 3"):
        found.add("a[3]", ValueError("third"))
