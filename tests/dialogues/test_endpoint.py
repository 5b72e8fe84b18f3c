import asyncio

import pytest
import standin_llm

from mvjax.dialogues import endpoint, prompts, topics

CHAT = prompts.messages(prompts.UNRELATED, topics.TOPICS[0], [])


def asked(url, **changes):
    options = {"first_wait": 0.01, "attempts": 3, "timeout": 20.0}
    return endpoint.Endpoint(url, **(options | changes))


def ask(to, seed=1, chat=CHAT):
    async def once():
        async with endpoint.Client(to, connections=2) as client:
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


@pytest.mark.parametrize("fault", [429, 500, 503, "junk", "drop"])
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
    [(500, "500 .*fault 500", 3), (400, "400 .*fault 400", 1), ("junk", "no chat completion", 3)],
)
def test_a_request_that_fails_for_good_says_why(fault, message, requests):
    with (
        standin_llm.serving(faults={"*": fault}) as server,
        pytest.raises(endpoint.Unanswered, match=message),
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
