"""Hostile sessions against the server with the stand-in model; `tools/attack_server.py` has a thousand."""

import asyncio
import collections
import importlib.util
from pathlib import Path

import pytest
import standin

TOOL = Path(__file__).parents[2] / "tools" / "attack_server.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("attack_server", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_hostile_sessions_end_and_leave_a_good_client_and_all_slots(tool, caplog):
    pytest.importorskip("sphn")
    caplog.set_level("INFO")
    ends = collections.Counter()

    async def run():
        async with standin.serving(slots=2) as (url, _), standin.talking(url) as good:
            await good.echo(30)
            numbers = range(len(tool.ATTACKS) + 2)
            gate = asyncio.Semaphore(20)

            async def one(number):
                async with gate:
                    await tool.attack(url, number, ends)

            attacks = asyncio.gather(*(one(number) for number in numbers))
            while not attacks.done():
                await good.say(30)
                await good.frames(len(good.heard) + 1)
                await asyncio.sleep(0.05)
            await attacks
            assert set(good.levels()[3:]) == {30}
            await good.ask(request="text", text="w33")
            await good.echo(31)
            async with standin.talking(url) as other:  # the other slot is free again
                await other.echo(20)
            return len(numbers)

    assert asyncio.run(run()) == ends.total()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert not errors, errors[0].getMessage()
    by_server = sum(count for end, count in ends.items() if "closed by the server" in end)
    assert by_server >= 8, ends
