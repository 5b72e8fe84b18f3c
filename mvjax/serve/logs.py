"""The server's log: a line of text for people, or a line of JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(*, as_json: bool) -> None:
    """Sends what mvjax and aiohttp log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # at INFO it tells which devices a machine does not have
    logging.getLogger("jax").setLevel(logging.WARNING)


def _details(record: logging.LogRecord) -> dict[str, Any]:
    """What was logged beside the text."""
    return {k: v for k, v in vars(record).items() if k not in _PLAIN and v not in (None, "")}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_details(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        details = " ".join(f"{k}={v}" for k, v in _details(record).items())
        text = f"{time.strftime('%H:%M:%S')} {record.levelname.lower():7} {record.getMessage()} {details}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text.rstrip()
