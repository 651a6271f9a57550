"""How a key looks to its holder: `tl_<id>_<secret><checksum>`, and `tladm_...` for keys of the admin interface."""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from typing import Final

KEY: Final = "tl"
ADMIN: Final = "tladm"
BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 43
_TOKEN: Final = {
    prefix: re.compile(rf"{prefix}_([0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{6}})")
    for prefix in (KEY, ADMIN)
}


def mint(prefix: str = KEY) -> tuple[str, str]:
    """A new id and its token, as the client will send it."""
    id = random(ID_LENGTH)
    return id, token(id, random(SECRET_LENGTH), prefix)


def token(id: str, secret: str, prefix: str = KEY) -> str:
    """The text that a client sends. Its checksum tells a mistyped key from a wrong one without any look-up."""
    text = f"{prefix}_{id}_{secret}"
    return text + crc(text)


def parse(presented: str, prefix: str = KEY) -> tuple[str, str]:
    """The id and secret of a token with this prefix; `ValueError` if it cannot be one."""
    match = _TOKEN[prefix].fullmatch(presented)
    if match is None or crc(presented[:-6]) != match[3]:
        raise ValueError("not a virtual key" if prefix == KEY else "not an admin key")
    return match[1], match[2]


def digest(secret: str, pepper: bytes) -> str:
    """What is stored of a secret. A fast hash suffices: the secret has 256 random bits."""
    return hmac.digest(pepper, secret.encode(), "sha256").hex()


def crc(text: str) -> str:
    """The CRC-32 of a text in six digits of base 62."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return digits


def random(length: int) -> str:
    """So many random digits of base 62."""
    return "".join(secrets.choice(BASE62) for _ in range(length))
