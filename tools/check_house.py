"""Prints the rooms of mvjax, the arrows between them, the longest files and functions; fails on a breach.

    python tools/check_house.py

A file imports from its own room and from floors below it (docs: BUILD.md, "The map"). Breaches are an arrow up
or sideways, a cycle, a module of ours named in a string, jax in a room that must install without it, a file
or a function over its limit.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "mvjax"
MAX_FILE, MAX_FUNCTION = 320, 60  # lines

# Ground floor first. A room is a file or a folder of mvjax/; one floor's rooms do not import each other, but
# for those of the ground, which are single files.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__init__", "types", "tree", "files"),
    ("gates", "scopes"),
    ("config",),
    ("nn", "run_folder"),
    ("codec",),
    ("weights",),
    ("data", "runtimes"),
    ("train", "export", "report", "dialogues"),
    ("plan", "eval", "serve", "sweep"),
    ("digits",),
    ("commands",),
    ("cli", "__main__"),
)
