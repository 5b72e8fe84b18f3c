"""The address that a server listens at, taken before anything is loaded; and how the process ends."""

import types

import pytest
from aiohttp import web

from mvjax import cli
from mvjax.serve import app as app_lib
from mvjax.serve import running


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(tmp_path):
    with running.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match="Address already in use.*; choose another, --port 0"):
            running.listen("127.0.0.1", port)
        with pytest.raises(ValueError, match=r"--host no-such-host\.invalid"):
            running.listen("no-such-host.invalid", 0)
    running.listen("::1", 0).close()


def test_a_port_out_of_range_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", str(tmp_path), "--port", "99999"])
    assert "expected a number from 0 to 65535, got '99999'" in capsys.readouterr().err


def test_the_process_ends_with_status_1_when_the_engine_has_died(monkeypatch):
    monkeypatch.setattr(running.sys, "setswitchinterval", lambda seconds: None)
    app = web.Application()
    app[app_lib.ENGINE] = types.SimpleNamespace(died=True)
    with running.listen("127.0.0.1", 0) as taken:
        assert running.run(app, taken, None) == 1
