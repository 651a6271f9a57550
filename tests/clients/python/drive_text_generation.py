"""`text-generation`, TGI's own client: generation of a server behind the gateway that need not be a TGI."""

import json
import os
import warnings

from outcomes import BAD_KEY, KEY, LIMITED_KEY, URL, case, expect, run

warnings.filterwarnings("ignore", category=DeprecationWarning)
from text_generation import Client  # noqa: E402
from text_generation.errors import RateLimitExceededError, UnknownError, ValidationError  # noqa: E402

KEYS = {"tgi": os.environ["GATEWAY_TGI_KEY"], "llama.cpp": KEY}
PROMPT = "The capital of France is"


def client(key=KEY):
    return Client(URL, headers={"authorization": f"Bearer {key}"}, timeout=60)


@case("plain", *KEYS)
def plain(which):
    assert client(KEYS[which]).generate(PROMPT, max_new_tokens=4).generated_text


@case("stream", *KEYS)
def stream(which):
    seen = list(client(KEYS[which]).generate_stream(PROMPT, max_new_tokens=4))
    assert "".join(each.token.text for each in seen) == seen[-1].generated_text.removeprefix(PROMPT)
    assert seen[-1].details.generated_tokens == 4


@case("plain", "chat")
def chat(_):
    answer = client(KEYS["tgi"]).chat([{"role": "user", "content": "Hi"}], max_tokens=4, temperature=0.5)
    assert answer.choices[0].message.content


@case("structured", *KEYS)
def structured(which):
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    grammar = {"type": "json", "value": schema}
    asked = client(KEYS[which])
    answer = asked.generate("A city as JSON:", max_new_tokens=60, grammar=grammar).generated_text
    assert json.loads(answer.removeprefix("A city as JSON:"))["city"] in ("Paris", "Rome")


@case("400", *KEYS)
def invalid(which):
    asked = client(KEYS[which])
    expect(ValidationError, lambda: asked.generate("word " * 20_000, max_new_tokens=4))


@case("401")
def bad_key():
    expect(UnknownError, lambda: client(BAD_KEY).generate(PROMPT))


@case("429")
def limited():
    hasty = client(LIMITED_KEY)
    hasty.generate(PROMPT, max_new_tokens=4)
    expect(RateLimitExceededError, lambda: hasty.generate(PROMPT, max_new_tokens=4))


run("text-generation")
