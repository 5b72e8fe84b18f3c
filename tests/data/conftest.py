import pytest


@pytest.fixture
def config(tmp_path, monkeypatch):
    # Inside, because mvjax must not be imported before its annotations are instrumented.
    import toy_records

    from mvjax.data.records import shards

    # So that `toy_records.spoil` finds a record by its id.
    monkeypatch.setitem(shards._WRITER, "compressed", shards._WRITER["plain"])
    codec = tmp_path / "codec"
    codec.write_text("a codec")
    return toy_records.make_config(tmp_path / "records", codec)
