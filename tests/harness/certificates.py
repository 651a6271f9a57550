"""Certificates for tests of TLS: an authority, a server and a client, in files."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme
from msgspec import Struct


class Certificates(Struct, frozen=True):
    """Paths of files in PEM, and what a server takes from them."""

    ca: str
    client: str
    """Certificate and key of a client."""
    client_cert: str
    client_key: str
    server: ssl.SSLContext
    """For `localhost`, `engine.test` and 127.0.0.1."""
    strict: ssl.SSLContext
    """The same; it wants the client's certificate."""


def certificates(folder: Path) -> Certificates:
    """New certificates, in `folder`."""
    authority = trustme.CA()
    own, client = authority.issue_cert("localhost", "engine.test", "127.0.0.1"), authority.issue_cert("gateway.test")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    client.private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    client.cert_chain_pems[0].write_to_path(str(folder / "client-cert.pem"))
    client.private_key_pem.write_to_path(str(folder / "client-key.pem"))
    contexts = []
    for _ in range(2):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.configure_cert(context)
        contexts.append(context)
    authority.configure_trust(contexts[1])
    contexts[1].verify_mode = ssl.CERT_REQUIRED
    files = [str(folder / name) for name in ("ca.pem", "client.pem", "client-cert.pem", "client-key.pem")]
    return Certificates(*files, *contexts)
