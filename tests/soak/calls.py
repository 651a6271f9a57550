"""The calls of the soak: what may be sent, how its client behaves, and what may come of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from faults.volley import Exchange, post
from soak.keys import GOOD, UNKNOWN, Keys
from soak.place import LONG, STEADY_TOKENS, TOKENS
from soak.table import BODY, SPOILED

PROMPT = "Tell me a story of ten words or more.\n"
FAILS = frozenset({429, 502, 503, 504})
"""What a good call may be told while targets fail and queues are full."""
FAULTS = (
    "stall=3", "cut=4", "reset=2", "reset=0", "hang", "late=0.3", "cut_bytes=300", "short=3", "no_finish", "status=500",
    "retry_after=1", "retry_after=1e9", "error200", "error_then_done=3", "html", "invalid_json", "malformed=json",
    "malformed=crlf", "malformed=mixed", "malformed=comments", "trickle=7", "slow=0.05",
    "wrong_length=50", "close_idle=0", "redirect", "headers",
)  # fmt: skip
"""What a call may order of one of its targets."""
GARBAGE = (
    b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
    b"GET /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 60_000 + b"\r\n\r\n",
    b"\r\n\r\n\r\n",
)
WRONG_BODIES = (b"", b"{", b"[]", b"null", b'{"model": 1}', b'{"model": "chat", "messages": "\xff"}', b"[" * 50_000)


BURSTS = {"narrow": 6, "capped": 5}
"""Calls at once, to fill what may be filled."""


class Plan(NamedTuple):
    """A call to make."""

    kind: str
    raw: bytes
    way: str = "stays"
    """What its client does: stays, leaves, resets, half, reads slowly, never reads, idles."""
    label: str = ""
    """Whose key it has."""
    stream: bool = False
    truth: str | None = None
    """The text of a whole answer; None: there is none, or nobody looks at it."""
    statuses: frozenset[int] = FAILS
    """Besides 200, if there is a truth; 0: the connection is closed without an answer."""
    answered: bool = True
    """200 is a good answer; otherwise one of `statuses` is."""
    copies: int = 1
    """As many at once."""


class Made(Exchange):
    """A call that was made; `refused`: there was no connection for it."""

    refused = False
    port = 0


class Deck:
    """All kinds of calls, shuffled, again and again; the same seed, the same calls."""

    def __init__(self, keys: Keys, chance: random.Random) -> None:
        self._keys, self._chance = keys, chance
        self._made: dict[Callable[[], Plan], int] = {
            self._talk: 30,
            self._embedding: 3,
            self._metered: 12,
            self._volatile: 3,
            self._wrong_key: 2,
            self._garbage: 2,
            self._wrong_body: 1,
            self._huge: 1,
            self._unknown_model: 1,
            self._slow: 1,
            self._idle: 1,
        }

    def plans(self) -> Iterator[Plan]:
        cards = [card for card, count in self._made.items() for _ in range(count)]
        while True:
            self._chance.shuffle(cards)
            for card in cards:
                yield card()

    def _talk(self) -> Plan:
        """A call of some kind to a route whose targets misbehave."""
        chance = self._chance
        route, label = chance.choice(("chat", "chat", "story", "plain", "plain", "held")), chance.choice(GOOD)
        words, chats, streams = chance.randrange(1, 30), chance.random() < 0.7, chance.random() < 0.65
        body = saying(route, words, chats=chats, stream=streams)
        if chance.random() < 0.3:
            body["x_fault"] = {chance.choice(SPOILED): chance.choice(FAULTS) for _ in range(2)}
        way = chance.choices(("stays", "leaves", "resets", "half"), (70, 14, 12, 4))[0]
        kind = f"{route} {'stream' if streams else 'whole'}{'' if chats else ', completion'}"
        said = min(words, TOKENS)
        return Plan(kind, self._post(body, label, chats=chats), way, label, streams, story(said))

    def _metered(self) -> Plan:
        """A call to a route whose target is always well, of a key with a limit that is reached; or of a full target."""
        label = self._chance.choice(("narrow", "narrow", "rpm", "tpm", "spent", "capped", "capped"))
        streams = self._chance.random() < 0.5
        raw = self._post(saying(label, 20, chats=True, stream=streams), "free" if label == "capped" else label)
        copies = BURSTS.get(label, 1)
        return Plan(label, raw, "stays", label, streams, story(STEADY_TOKENS), frozenset({429, 503}), copies=copies)

    def _embedding(self) -> Plan:
        body = {"model": "embed", "input": ["some", "words to embed"]}
        raw = post(json.dumps(body).encode(), self._keys.secret("free"), "embeddings")
        return Plan("embedding", raw, self._chance.choice(("stays", "stays", "leaves")), "free")

    def _volatile(self) -> Plan:
        """With a key that may end at any time."""
        issued = self._keys.volatile[0]
        raw = post(json.dumps(saying("rpm", 4, chats=True, stream=False)).encode(), issued.secret)
        return Plan("volatile key", raw, "stays", issued.record.id, False, story(4), frozenset({401, 429, 503}))

    def _wrong_key(self) -> Plan:
        raw = post(json.dumps(saying("chat", 4, chats=True, stream=False)).encode(), UNKNOWN)
        return Plan("wrong key", raw, statuses=frozenset({401, 429, 503}), answered=False)

    def _garbage(self) -> Plan:
        raw = self._chance.choice(GARBAGE)
        return Plan("garbage", raw, "waits a little", statuses=frozenset({0, *range(400, 500)}), answered=False)

    def _wrong_body(self) -> Plan:
        raw = post(self._chance.choice(WRONG_BODIES), self._keys.secret("free"))
        return Plan("wrong body", raw, statuses=frozenset({400, 404, 503}), answered=False)

    def _huge(self) -> Plan:
        body = saying("chat", 4, chats=True, stream=True)
        body["messages"][0]["content"] = "x" * (BODY + 10_000)
        return Plan("huge body", self._post(body, "free"), statuses=frozenset({413, 503}), answered=False)

    def _unknown_model(self) -> Plan:
        raw = self._post(saying("nothing", 4, chats=True, stream=False), "free")
        return Plan("unknown model", raw, statuses=frozenset({404, 503}), answered=False)

    def _slow(self) -> Plan:
        """A client that reads slowly, or not at all."""
        raw = self._post(saying("long", LONG, chats=True, stream=True), "free")
        way = self._chance.choice(("reads slowly", "never reads"))
        return Plan(way, raw, way, "free", True, story(LONG), answered=way == "reads slowly")

    def _idle(self) -> Plan:
        return Plan("idle connection", b"", "idles", statuses=frozenset({0}), answered=False)

    def _post(self, body: dict[str, Any], label: str, *, chats: bool = True) -> bytes:
        secret = self._keys.secret(label)
        return post(json.dumps(body).encode(), secret, "chat/completions" if chats else "completions")


def saying(route: str, words: int, *, chats: bool, stream: bool) -> dict[str, Any]:
    """A call for a story of so many words."""
    asked = {"messages": [{"role": "user", "content": PROMPT}]} if chats else {"prompt": PROMPT}
    return {"model": route, "max_tokens": words, "stream": stream, **asked}


def story(words: int) -> str:
    """What a fake backend says."""
    return " ".join(f"w{number}" for number in range(1, words + 1))
