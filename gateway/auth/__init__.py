"""Virtual keys and admin keys: how they look, how they are stored, who may come in with one."""

from gateway.auth.admin_keys import AdminKeys
from gateway.auth.keyring import Keyring
from gateway.auth.networks import Network, networks
from gateway.auth.rights import authorize, may_use
from gateway.auth.throttle import Throttle
from gateway.auth.token import mint, parse, token
from gateway.core.types import Caller

__all__ = [
    "AdminKeys",
    "Caller",
    "Keyring",
    "Network",
    "Throttle",
    "authorize",
    "may_use",
    "mint",
    "networks",
    "parse",
    "token",
]
