"""`instructor`: structured output over chats and messages."""

import instructor
import openai
from anthropic import Anthropic
from instructor.core.exceptions import InstructorRetryException
from openai import OpenAI
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, URL, case, expect, failing, run
from pydantic import BaseModel

ASKED = [{"role": "user", "content": "Give a person as JSON."}]


class Person(BaseModel):
    name: str
    age: int


def client(mode=instructor.Mode.TOOLS, key=KEY, retries=0):
    return instructor.from_openai(OpenAI(base_url=URL + "/v1", api_key=key, max_retries=retries), mode=mode)


def person(made, model="engine", messages=ASKED, **more):
    return made.chat.completions.create(model=model, messages=messages, response_model=Person, max_retries=1, **more)


@case("structured", "tools", "json_schema", "json_schema tgi")
def structured(which):
    if which == "tools":
        return person(client())
    model = which.partition(" ")[2] or "native"
    assert person(client(instructor.Mode.JSON_SCHEMA), model, max_tokens=200, temperature=0).name is not None


@case("structured", "messages")
def messages(_):
    made = instructor.from_anthropic(Anthropic(base_url=URL, api_key=KEY, max_retries=0))
    asked = {"model": "engine", "max_tokens": 100, "messages": ASKED}
    assert made.messages.create(response_model=Person, max_retries=1, **asked).name


@case("stream", "partial", "iterable")
def stream(which):
    if which == "partial":
        *_, last = client().chat.completions.create_partial(model="engine", messages=ASKED, response_model=Person)
        assert last.name == "Paris" and last.age == 30
    else:
        found = client().chat.completions.create_iterable(model="engine", messages=ASKED, response_model=Person)
        assert [each.name for each in found] == ["Paris"]


def refused(status, call):
    """Instructor wraps what the SDK raises."""
    error = expect((InstructorRetryException, openai.APIStatusError), call)
    while not isinstance(error, openai.APIStatusError) and error.__cause__ is not None:
        error = error.__cause__
    found = getattr(error, "status_code", None)
    assert found == status or f"{status}" in str(error), error
    return error


@case("401")
def bad_key():
    refused(401, lambda: person(client(key=BAD_KEY)))


@case("404")
def unknown_model():
    refused(404, lambda: person(client(), "no-such-model"))


@case("400")
def too_long():
    refused(400, lambda: person(client(), "native", [{"role": "user", "content": TOO_LONG}]))


@case("429")
def limited():
    person(client(key=LIMITED_KEY))
    refused(429, lambda: person(client(key=LIMITED_KEY)))


@case("retry", "503", "429")
def retry(status):
    assert person(client(retries=3), messages=[{"role": "user", "content": failing(int(status))}]).name


run("instructor")
