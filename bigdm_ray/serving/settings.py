"""Where a server listens, who may speak to it, its limits: settings, and the files they name."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from bigdm_ray.errors import UserError, quote_value
from bigdm_ray.settings import setting

TOKEN = "BIGDM_TOKEN"
"""The environment variable of the token."""
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens, and its limits."""

    address: str = setting(
        "127.0.0.1:50051",
        "HOST:PORT, or PORT of loopback; port 0 takes a free one, which is told",
    )
    token_file: str | None = setting(
        None,
        f"file that holds the token which every call must bring; the variable {TOKEN} is as good."
        " Needed where the address is not loopback",
    )
    tls_cert: str | None = setting(None, "certificate of the server (PEM): what is sent is secret")
    tls_key: str | None = setting(None, "its private key (PEM)")
    tls_client_ca: str | None = setting(
        None, "certificates (PEM) of which clients must show one that is signed by them"
    )
    max_message_mib: int = setting(32, "MiB of a message, at most", low=1, high=1024)
    max_sessions: int = setting(1024, "sessions at a time, at most", low=1, high=1_000_000)
    max_idle: float = setting(
        600.0, "seconds after which a session that nobody acts with is ended", above=0
    )
    max_episodes: int = setting(
        64, "episodes of one sender that are not durable yet, at most", low=1, high=10_000
    )
    threads: int = setting(1, "torch threads of the policy", low=1, high=512)


def split_address(address: str) -> tuple[str, int]:
    """Host and port. Raises UserError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UserError(
            f"the address is {quote_value(address)}, but HOST:PORT is expected, or a PORT of"
            " loopback alone"
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(settings: ServerSettings) -> bytes | None:
    """The token, if there is one. Raises UserError for one that is short, or lacks where it is
    needed."""
    token = os.environ.get(TOKEN, "")
    if settings.token_file is not None:
        token = read_file(settings.token_file, "--token-file").decode(errors="replace")
    token = token.strip()
    host, _ = split_address(settings.address)
    if not token:
        if settings.token_file is None and is_loopback(host):
            return None
        where = f"{settings.token_file} is empty" if settings.token_file else f"{host} is reached"
        more = "" if settings.token_file else " from other machines"
        raise UserError(
            f"{where}{more}, but a token is expected that every call must bring: set {TOKEN}, or"
            " give --token-file (`openssl rand -hex 24` makes one)"
        )
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise UserError(
            f"the token has {len(token)} characters, but at least {SHORTEST_TOKEN} of ASCII are"
            " expected (`openssl rand -hex 24` makes one)"
        )
    return token.encode()


def read_file(path: str, flag: str) -> bytes:
    """A file that a flag names. Raises UserError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be read: {error.strerror}") from None
