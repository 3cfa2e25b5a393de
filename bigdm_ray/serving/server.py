"""The server: where it listens, who may speak to it, and its life in a thread of its own.

It listens on loopback unless it is told another address, and then only with a token that every call
must bring. All limits are settings. One `Server` serves a run folder (`bigdm serve`) or stands in
the process of a live run (`live.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer  # noqa: F401  (the aio one derives from it)
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.serving.served import Versions
from bigdm_ray.serving.service import NAME, PolicyService, Takes, log
from bigdm_ray.serving.sessions import Engine
from bigdm_ray.serving.settings import (
    ServerSettings,
    is_loopback,
    read_file,
    read_token,
    split_address,
)

PATIENCE_S = 5.0
"""Seconds in which what is under way is answered when the server ends."""


def read_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """TLS, if it is asked for. Raises UserError for files that do not go together."""
    if settings.tls_cert is None and settings.tls_key is None:
        if settings.tls_client_ca is not None:
            raise UserError("--tls-client-ca is given without --tls-cert and --tls-key; give these")
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise UserError("--tls-cert and --tls-key belong together; give both")
    pair = read_file(settings.tls_key, "--tls-key"), read_file(settings.tls_cert, "--tls-cert")
    for data, word, flag in zip(pair, ("PRIVATE KEY", "CERTIFICATE"), ("key", "cert"), strict=True):
        if b"-----BEGIN" not in data or word.encode() not in data:
            raise UserError(f"--tls-{flag} holds no {word.lower()} in PEM; give one")
    authority = settings.tls_client_ca and read_file(settings.tls_client_ca, "--tls-client-ca")
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authority or None, require_client_auth=bool(authority)
    )


class TokenGate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets in calls of any service that bring the token."""

    def __init__(self, token: bytes) -> None:
        self._expected = b"Bearer " + token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See grpc.aio."""
        told = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        told = told if isinstance(told, bytes) else told.encode()
        handler = await continuation(handler_call_details)
        if hmac.compare_digest(told, self._expected) or handler is None:
            return handler
        return _turned_away(handler)


def _turned_away(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """A handler of the same kind that lets nobody in."""
    why = "the token is missing, or another one; clients give it as `authorization: Bearer TOKEN`"

    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, why)

    async def refuse_all(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, why)
        yield b""

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(refuse_all if handler.response_streaming else refuse)


class Server:
    """A policy server in a thread. `start` and `stop` are called from others."""

    def __init__(
        self, settings: ServerSettings, versions: Versions, takes: Takes | None = None
    ) -> None:
        """Raises UserError for settings that do not go together, before anything is opened."""
        self.settings = settings
        self._versions, self._takes = versions, takes
        self._token = read_token(settings)
        self._credentials = read_credentials(settings)
        self.host, self.port = split_address(settings.address)
        self._thread = threading.Thread(target=self._main, name="bigdm-server", daemon=True)
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def exposure(self) -> str | None:
        """What is to be said of its safety, in one sentence."""
        if is_loopback(self.host) or self._credentials is not None:
            return None
        return (
            f"what goes to and from {self.address} is not encrypted: who can listen on the way"
            " reads the token, and acts; give --tls-cert and --tls-key, or a private network"
        )

    def start(self) -> None:
        """Listen. Raises UserError where the address cannot be had."""
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed

    def stop(self) -> None:
        """Answer what is under way, and listen no more."""
        if self._loop is not None and self._over is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has ended in between
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except (UserError, OSError) as error:
            self._failed = error
        finally:
            self._ready.set()

    def _options(self) -> list[tuple[str, int]]:
        most = self.settings.max_message_mib << 20
        return [
            ("grpc.so_reuseport", 0),  # else two servers would share a port
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", most),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.max_concurrent_streams", 4 * self.settings.max_sessions),
        ]

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        gates = [TokenGate(self._token)] if self._token else []
        server = grpc.aio.server(interceptors=gates, options=self._options())
        engine = Engine(self.settings.threads)
        service = PolicyService(
            self._versions,
            engine,
            self.settings.max_sessions,
            self._takes,
            self.settings.max_episodes,
        )
        server.add_generic_rpc_handlers((service.handler(),))
        health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        names = (NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        try:
            self._listen(server)
            await server.start()
            for name in ("", *names):
                await health.set(name, health_pb2.HealthCheckResponse.SERVING)
            self._ready.set()
            await self._until_over(service)
            await health.enter_graceful_shutdown()
            await service.close(PATIENCE_S)
        finally:
            await server.stop(0.5)
            await asyncio.to_thread(engine.close)

    def _listen(self, server: grpc.aio.Server) -> None:
        try:
            if self._credentials is None:
                self.port = server.add_insecure_port(self.address)
            else:
                self.port = server.add_secure_port(self.address, self._credentials)
        except RuntimeError:
            raise RunFailed(
                f"{self.address} cannot be listened on: it is taken, or not of this machine;"
                " choose another port, or 0 for a free one"
            ) from None

    async def _until_over(self, service: PolicyService) -> None:
        """End idle sessions until somebody says that all is over."""
        assert self._over is not None
        limit = self.settings.max_idle
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), min(5.0, limit / 2))
            if count := service.sessions.end_idle(limit):
                log(f"{count} session(s) ended: idle for {limit:g} s")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which takes 0.05 ms less for a message; asyncio's own where there is none."""
    try:
        import uvloop
    except ImportError:  # it is not made for Windows
        return None
    return uvloop.new_event_loop


def served_phrase(server: Server, what: str) -> Iterator[str]:
    """What is said when a server listens: a line, and a warning where one is due."""
    guarded = "with a token" if server._token else "no token"
    tls = "TLS" if server._credentials is not None else "no TLS"
    yield f"serving {what} at {server.address} ({guarded}, {tls})"
    if (warning := server.exposure()) is not None:
        yield f"note: {warning}"
