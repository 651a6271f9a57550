"""What a client can ask for, by the names that keys, limits and metrics know it by."""

from __future__ import annotations

from typing import Final, Literal

Endpoint = Literal[
    "chat/completions",
    "completions",
    "embeddings",
    "responses",
    "responses/stored",
    "messages",
    "messages/count_tokens",
    "rerank",
    "score",
    "decisions",
    "tokenize",
    "detokenize",
    "generate",
    "generate/root",
    "audio/transcriptions",
    "audio/translations",
    "passed",
]

COMMON: Final[frozenset[Endpoint]] = frozenset({"chat/completions", "completions", "embeddings"})
"""Those of every server in OpenAI's language."""
STREAMED: Final[frozenset[Endpoint]] = frozenset(
    {
        "chat/completions",
        "completions",
        "responses",
        "messages",
        "generate/root",
        "audio/transcriptions",
        "audio/translations",
        "passed",
    }
)
"""Their answers come as streams, if the client asks for that."""
FORMS: Final[frozenset[str]] = frozenset({"audio/transcriptions", "audio/translations"})
"""Their bodies are multipart forms."""
STORED: Final[Endpoint] = "responses/stored"
"""What is done with a response that its server keeps: it is shown, deleted, stopped."""
UNCOUNTED: Final[frozenset[str]] = FORMS | {STORED, "messages/count_tokens", "tokenize", "detokenize"}
"""No model works on them, or no tokens are counted: they are requests, and nothing else."""
SILENT: Final[frozenset[str]] = UNCOUNTED | {"embeddings", "rerank", "score", "decisions"}
"""Their answers are no text of a model."""
ANTHROPIC: Final[frozenset[str]] = frozenset({"messages", "messages/count_tokens"})
"""Those of Anthropic's language."""
TGI: Final[frozenset[str]] = frozenset({"generate", "generate/root"})
"""Those of TGI's own language."""
ALWAYS_STREAMED: Final = b"/generate_stream"
"""A path whose answers are streams, whatever the body says."""

PATHS: Final[dict[str, Endpoint]] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages/count_tokens",
    "/v1/rerank": "rerank",
    "/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/v1/score": "score",
    "/score": "score",
    "/v1/decisions": "decisions",
    "/tokenize": "tokenize",
    "/v1/tokenize": "tokenize",
    "/detokenize": "detokenize",
    "/v1/detokenize": "detokenize",
    "/generate": "generate",
    "/generate_stream": "generate",
    "/": "generate/root",
    "/v1/audio/transcriptions": "audio/transcriptions",
    "/v1/audio/translations": "audio/translations",
}
"""Where clients ask for each: some servers have it under several paths."""
