"""A client's request, as it comes."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes


class Request:
    """What a client asks. Once `method` is set, the head is whole; the body may still be coming."""

    __slots__ = ("expects", "headers", "is_whole", "keeps_alive", "method", "pieces", "target", "unread", "version")

    def __init__(self) -> None:
        self.method = self.version = ""
        self.target = b""
        """As it was sent: path and query, or a whole URL."""
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.pieces: list[bytes] = []
        """Of the body: those that have come, and that nobody has taken."""
        self.unread = 0
        """Their bytes together."""
        self.is_whole = False
        """All of the body has come."""
        self.keeps_alive = False
        """The client means to use its connection again."""
        self.expects = False
        """It waits to be told to go on before it sends the body."""

    def begin(self, method: bytes, version: str, keeps_alive: bool) -> None:
        """The head is whole."""
        self.method, self.version, self.keeps_alive = method.decode("ascii"), version, keeps_alive
        self.expects = version == "1.1" and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in self.headers
        )

    def take(self) -> bytes:
        """What has come of the body since the last time."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.unread = 0
        return data

    @property
    def path(self) -> str:
        """Without query, and with what was quoted in it as it means."""
        path = self.target.partition(b"?")[0]
        if not path.startswith(b"/") and b"://" in path:
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        return unquote_to_bytes(path).decode("utf-8", "replace")

    @property
    def query(self) -> bytes:
        """What stands behind the question mark, as it was sent."""
        return self.target.partition(b"?")[2]
