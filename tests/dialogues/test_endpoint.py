import asyncio

import pytest
import standin_llm

from mvjax.dialogues import completion, endpoint, prompts, topics

CHAT = prompts.messages(prompts.UNRELATED, topics.TOPICS[0], [])


def asked(url, **changes):
    options = {"first_wait": 0.01, "attempts": 3, "timeout": 20.0}
    return endpoint.Endpoint(url, **(options | changes))


def ask(to, seed=1, chat=CHAT, report=print):
    async def once():
        async with endpoint.Client(to, connections=2, report=report) as client:
            return await client.ask(chat, seed=seed), client.retries

    return asyncio.run(once())


def test_a_request_is_openais_and_its_seed_decides():
    with standin_llm.serving() as server:
        (answer, _), (again, _) = ask(asked(server.url)), ask(asked(server.url))
        other, _ = ask(asked(server.url), seed=2)
    body = server.requests[0]
    assert server.paths[0] == "/v1/chat/completions"
    assert (body["model"], body["seed"]) == ("mistralai/Mistral-Nemo-Instruct-2407", 1)
    assert (body["temperature"], body["max_tokens"], body["messages"]) == (0.7, 150, CHAT)
    assert answer == again != other and answer.tokens > 1 and not answer.cut


CUT_IN_A_CHARACTER = b'{"choices": [{"message": {"content": "A cat \xf0\x9f\x98"}}]}'
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "fault",
    [429, 500, 503, "junk", "drop", CUT_IN_A_CHARACTER, DEEP, b"<html>busy</html>", b""],
    ids=str,
)
def test_busy_and_broken_answers_are_asked_for_again(fault):
    with standin_llm.serving(faults={0: fault, 1: fault}) as server:
        answer, retries = ask(asked(server.url))
    assert answer.text and retries == 2 and len(server.requests) == 3


def test_slow_answers_are_given_up_and_asked_for_again():
    with standin_llm.serving(faults={0: "slow"}) as server:
        answer, retries = ask(asked(server.url, timeout=1.0))
    assert answer.text and retries == 1


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        (500, "500 .*fault 500", 3),
        (400, "400 .*fault 400", 1),
        ("junk", "no chat completion", 3),
        (CUT_IN_A_CHARACTER, "no chat completion: .*A cat", 3),
        (b'{"error": {"message": "model is loading"}}', "500 .*model is loading", 3),
        (b'{"error": {"message": "too long", "code": "400"}}', "400 .*too long", 1),
    ],
)
def test_a_request_that_fails_for_good_says_why(fault, message, requests):
    with (
        standin_llm.serving(faults={"*": fault}) as server,
        pytest.raises(completion.Unanswered, match=message),
    ):
        ask(asked(server.url))
    assert len(server.requests) == requests


@pytest.mark.parametrize("fault", [401, 403, 404])
def test_what_no_request_can_pass_stops_at_once(fault):
    with (
        standin_llm.serving(faults={"*": fault}) as server,
        pytest.raises(
            endpoint.EndpointRefuses, match=f"got {fault} .*check the endpoint, the model's name"
        ),
    ):
        ask(asked(server.url, model="none"))
    assert len(server.requests) == 1


def test_an_error_with_status_200_is_the_error_that_it_names():
    body = b'{"error": {"message": "out of credits", "code": 402}}'
    with (
        standin_llm.serving(faults={"*": body}) as server,
        pytest.raises(endpoint.EndpointRefuses, match="got 402 .*out of credits"),
    ):
        ask(asked(server.url))
    assert len(server.requests) == 1


def test_each_reason_is_told_once_whatever_its_numbers():
    faults = {n: b'{"error": "request 0a%d timed out"}' % n for n in range(4)} | {4: 503}
    told = []
    with standin_llm.serving(faults=faults) as server:
        ask(asked(server.url, attempts=6), report=told.append)
    assert [line.split(": ", 1)[1][:40] for line in told] == [
        '500 {"error": "request 0a0 timed out"}',
        '503 {"error": {"message": "fault 503"}}',
    ]


def test_parameters_that_a_server_refuses_are_renamed_or_left_out():
    renamed = {"max_tokens": "max_completion_tokens", "seed": "random_seed", "temperature": ""}
    with standin_llm.serving(unknown=("max_tokens", "temperature", "seed")) as server:
        with pytest.raises(completion.Unanswered, match="400 .*unknown parameters"):
            ask(asked(server.url))
        ask(asked(server.url, renamed=renamed, extra={"think": False}, max_tokens=700))
    body = server.requests[-1]
    assert (body["max_completion_tokens"], body["random_seed"], body["think"]) == (700, 1, False)
    assert not {"max_tokens", "temperature", "seed"} & body.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"renamed": {"top_p": "p"}}, "temperature, max_tokens, seed, .*got .'top_p'."),
        ({"renamed": {"seed": "model"}}, "got .'model'."),
        ({"extra": {"messages": []}}, "got .'messages'."),
        ({"max_tokens": 0}, "max_tokens >= 1, got 0"),
    ],
)
def test_names_of_parameters_are_checked_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        endpoint.Endpoint("http://localhost:1", **changes)


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert endpoint.key_from_environment() is None
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    with standin_llm.serving(key="sesame") as server:
        assert ask(asked(server.url, key=endpoint.key_from_environment()))[0].text
        with pytest.raises(endpoint.EndpointRefuses, match="wrong key"):
            ask(asked(server.url))


def test_answers_that_hit_the_token_limit_are_marked():
    with standin_llm.serving(faults={0: "endless"}) as server:
        assert ask(asked(server.url))[0].cut


def test_models_without_a_system_role_get_one_user_message():
    with standin_llm.serving() as server:
        ask(asked(server.url, system_role=False))
    (message,) = server.requests[0]["messages"]
    assert message["role"] == "user"
    assert message["content"] == f"{CHAT[0]['content']}\n\n{CHAT[1]['content']}"


@pytest.mark.parametrize(
    ("url", "completions"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:11434/v1/", "http://localhost:11434/v1/chat/completions"),
        ("https://a.b/openai/v2", "https://a.b/openai/v2/chat/completions"),
    ],
)
def test_base_urls_are_taken_as_clients_take_them(url, completions):
    assert endpoint.Endpoint(url).completions == completions


def test_what_is_no_url_is_refused():
    with pytest.raises(ValueError, match="expected a URL such as .*, got 'localhost:8000'"):
        endpoint.Endpoint("localhost:8000")
