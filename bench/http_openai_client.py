"""The `openai` client at work: reads calls from standard input, writes what it got as JSON.

`http_clients.py` runs this in an environment that has openai and nothing of rtp_jax.  Each call is
made whole and as a stream, with the client as it comes; its own retries stay on.
"""

import json
import sys

import openai


def call(client: openai.OpenAI, asked: dict, *, stream: bool) -> dict:
    """Make one call and return its text and counts."""
    create = client.chat.completions.create if "messages" in asked else client.completions.create
    if not stream:
        answer = create(**asked)
        choice = answer.choices[0]
        text = choice.message.content if "messages" in asked else choice.text
        return {"text": text, **counts(answer.usage)}
    text, usage = "", None
    for event in create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            text += (choice.delta.content or "") if "messages" in asked else choice.text
        usage = event.usage or usage
    return {"text": text, **counts(usage)}


def counts(usage) -> dict[str, int]:
    """Name the counts of an answer."""
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "cached_tokens": cached,
    }


def refusal(client: openai.OpenAI, asked: dict) -> str:
    """Name the exception that a wrong call raises, and the error's id."""
    try:
        client.completions.create(**asked)
    except openai.APIStatusError as error:
        return f"{type(error).__name__} {error.code}"
    return "nothing"


def main() -> None:
    """Make all calls of the task on standard input."""
    task = json.load(sys.stdin)
    client = openai.OpenAI(base_url=task["base_url"], api_key=task["api_key"])
    answers = [
        {"stream": stream, "number": number, **call(client, asked, stream=stream)}
        for number, asked in enumerate(task["calls"])
        for stream in (False, True)
    ]
    models = [model.id for model in client.models.list()]
    refusals = [refusal(client, asked) for asked in task["wrong"]]
    found = {"version": openai.__version__, "models": models}
    json.dump({**found, "answers": answers, "refusals": refusals}, sys.stdout)


if __name__ == "__main__":
    main()
