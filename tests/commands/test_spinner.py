from mvjax.commands import spinner


def test_nothing_is_written_where_there_is_no_terminal(capfd):
    with spinner.shown("data/x: opening") as tell:
        tell("data/x: 3 records")
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_the_text_and_what_replaces_it(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with spinner.shown("data/x: opening") as tell:
        tell("data/x: 3 records")
    out, err = capfd.readouterr()
    assert out == "" and "data/x: opening" in err and "data/x: 3 records" in err
