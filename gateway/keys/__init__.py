"""Virtual keys and admin keys: how they look, how they are stored, who may come in with one."""

from gateway.keys.admin import AdminKeys
from gateway.keys.keyring import Caller, Keyring
from gateway.keys.public import public
from gateway.keys.registrar import Registrar
from gateway.keys.rights import authorize, may_use
from gateway.keys.sources import Network, networks
from gateway.keys.throttle import Throttle
from gateway.keys.token import mint, parse, token

__all__ = [
    "AdminKeys",
    "Caller",
    "Keyring",
    "Network",
    "Registrar",
    "Throttle",
    "authorize",
    "may_use",
    "mint",
    "networks",
    "parse",
    "public",
    "token",
]
