import pytest
import standin_llm

from mvjax import cli
from mvjax.commands import dialogues
from mvjax.dialogues import endpoint, kyutai_tts, tts


def run(capsys, *argv):
    status = cli.main(["dialogues", *map(str, argv)])
    return status, *capsys.readouterr()


def test_defaults_of_the_command_line_are_the_librarys():
    words = ["dialogues", "write", "c.jsonl", "--out", "d.jsonl"]
    args = cli._parser().parse_args(words)
    default = endpoint.Endpoint(args.endpoint)
    assert args.model == endpoint.MODEL == default.model
    assert (args.temperature, args.timeout) == (default.temperature, default.timeout)


def test_help_explains_every_kind(capsys):
    with pytest.raises(SystemExit):
        cli.main(["dialogues", "write", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{kind} {about}" in said for kind, about in dialogues.KINDS.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected SOURCE or --unrelated N, one of them"),
        (["c.jsonl", "--unrelated", 3], "expected SOURCE or --unrelated N, one of them"),
        (["--unrelated", 3, "--kind", "LOC"], "--kind and --per-image go with SOURCE"),
        (["none.jsonl"], "none.jsonl"),
        (["none", "--per-image", 0], "expected at least one an image, got 0"),
        (["none", "--endpoint", "localhost"], "expected a URL"),
    ],
)
def test_users_errors_of_write(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "write", "--out", tmp_path / "d.jsonl", *words)
    assert status == 2 and err.startswith("mvjax dialogues: ") and message in err


def test_status_1_if_the_server_failed_on_some(capsys, tmp_path):
    captions = standin_llm.captions(tmp_path, 2)
    with standin_llm.serving(faults={3: 400}) as server:
        words = ("--endpoint", server.url, "--concurrency", 1, "--kind", "LOC")
        out = tmp_path / "d.jsonl"
        status, said, _ = run(capsys, "write", captions, "--out", out, *words)
        assert (
            status == 1 and "1 written, 0 skipped as done before, 0 dropped, 1 unanswered" in said
        )
        status, said, _ = run(capsys, "write", captions, "--out", out, *words)
    assert status == 0 and "1 written, 1 skipped as done before" in said


def test_a_caption_that_cannot_be_used_is_listed_and_the_others_are_written(capsys, tmp_path):
    captions = standin_llm.captions(tmp_path, 3)
    (tmp_path / "test-0-00001.png").unlink()
    captions.write_text("junk\n" + captions.read_text())
    with standin_llm.serving() as server:
        words = ("--endpoint", server.url, "--kind", "LOC", "--out", tmp_path / "d.jsonl")
        status, said, _ = run(capsys, "write", captions, *words)
    assert status == 1 and "2 written" in said and "2 captions cannot be used:" in said
    assert "captions.jsonl line 1: expected" in said and "test-0-00001.png" in said


def test_requests_are_made_to_suit_the_server(capsys, tmp_path):
    out = tmp_path / "d.jsonl"
    words = ("--unrelated", 1, "--out", out, "--max-tokens", 900, "--rename", "temperature=")
    words += ("--rename", "max_tokens=max_completion_tokens", "--parameter", "effort=low")
    words += ("--parameter", 'chat_template_kwargs={"enable_thinking": false}')
    with standin_llm.serving(unknown=("max_tokens", "temperature")) as server:
        assert run(capsys, "write", *words, "--endpoint", server.url)[0] == 0
    body = server.requests[0]
    assert body["max_completion_tokens"] == 900 and body["effort"] == "low"
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("option", ["--rename", "--parameter"])
def test_names_without_a_value_are_refused(capsys, tmp_path, option):
    words = ("--unrelated", 1, "--out", tmp_path / "d.jsonl", option, "seed")
    status, _, err = run(capsys, "write", *words)
    assert status == 2 and f"{option}: expected NAME=..., got ['seed']" in err


def test_synthesizers_by_name():
    assert dialogues._voices("espeak", None, None) == tts.Espeak()
    assert dialogues._voices("espeak", "en", ["en+f1"]) == tts.Espeak("en", ("en+f1",))
    assert dialogues._voices("kyutai", None, ["a.wav"]).users == ("a.wav",)
    assert dialogues._voices("kyutai:folder", None, None) == kyutai_tts.Kyutai("folder")
    command = dialogues._voices("piper -f {wav} -m {voice}", "a", ["b", "c"])
    assert command == tts.Command("piper -f {wav} -m {voice}", "a", ("b", "c"))
