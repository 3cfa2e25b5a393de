"""Who may speak to a policy server, its limits, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from helpers_serving import Fixed, loaded_of, run_folder, serving, write_weights

from bigdm_ray.algorithms.base import find_algorithm
from bigdm_ray.client import PolicyError, connect
from bigdm_ray.doors import door
from bigdm_ray.errors import RunFailed, UserError
from bigdm_ray.serve import main
from bigdm_ray.serving import policy_pb2 as pb
from bigdm_ray.serving.server import Server
from bigdm_ray.serving.settings import ServerSettings, is_loopback, split_address

TOKEN = "a-token-of-24-characters"
GOOD = np.array([0, 1, 0], np.float32)


@pytest.fixture(scope="module")
def loaded():
    return loaded_of(find_algorithm("udrl"), "toy-vector")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate for localhost and its key, and those of a client, each signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
        words += f" -keyout {folder}/{name}.key -out {folder}/{name}.pem"
        words += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
        subprocess.run(words.split(), check=True, capture_output=True)
    return folder


def test_addresses_are_told_apart():
    assert split_address("7000") == ("127.0.0.1", 7000) == split_address("127.0.0.1:7000")
    assert split_address("[::1]:0") == ("::1", 0)
    assert all(map(is_loopback, ("127.0.0.1", "127.3.2.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.1.evil.org")))
    for wrong in ("", "host:", "host:port", "host:70000", "1.2.3.4"):
        with pytest.raises(UserError, match="HOST:PORT is expected"):
            split_address(wrong)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"address": "0.0.0.0:0"}, "a token is expected that every call must bring: set BIG"),
        ({"address": "0:0", "token_file": "short"}, "the token has 5 characters"),
        ({"token_file": "none"}, "--token-file .*none cannot be read: No such file"),
        ({"token_file": "empty"}, "empty is empty"),
        ({"tls_cert": "short"}, "--tls-cert and --tls-key belong together"),
        ({"tls_client_ca": "short"}, "is given without --tls-cert"),
        ({"tls_cert": "short", "tls_key": "short"}, "--tls-key holds no private key in PEM"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_once(settings, why, loaded, tmp_path):
    (tmp_path / "short").write_text("short")
    (tmp_path / "empty").write_text("\n")
    files = {
        name: value if name == "address" else str(tmp_path / value)
        for name, value in settings.items()
    }
    with pytest.raises(UserError, match=why):
        Server(ServerSettings(**files), Fixed(loaded))


def test_a_taken_port_is_told(loaded):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(ServerSettings(address=f"{port}"), Fixed(loaded))
        with pytest.raises(RunFailed, match=f"127.0.0.1:{port} cannot be listened on: it is taken"):
            server.start()


def test_every_rpc_needs_the_token(loaded, monkeypatch):
    monkeypatch.setenv("BIGDM_TOKEN", TOKEN)
    with Server(ServerSettings(address="0.0.0.0:0"), Fixed(loaded)) as server:
        assert "is not encrypted" in server.exposure()
        address = f"127.0.0.1:{server.port}"
        with connect(address) as client:  # it has the variable too
            client.start()(GOOD)
        with grpc.insecure_channel(address) as channel:
            for sent in ([], [("authorization", f"Bearer {TOKEN}x")], [("authorization", TOKEN)]):
                for name, method in pb.DESCRIPTOR.services_by_name[
                    "Policy"
                ].methods_by_name.items():
                    make = channel.stream_stream if method.client_streaming else channel.unary_unary
                    call = make(f"/bigdm.Policy/{name}")
                    with pytest.raises(grpc.RpcError) as told:
                        if method.client_streaming:
                            next(call(iter([b""]), metadata=sent))
                        else:
                            call(b"", metadata=sent)
                    assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
                health = health_pb2_grpc.HealthStub(channel)
                with pytest.raises(grpc.RpcError) as told:
                    health.Check(health_pb2.HealthCheckRequest(), metadata=sent)
                assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED
                asked = reflection_pb2.ServerReflectionRequest(list_services="")
                listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
                with pytest.raises(grpc.RpcError) as told:
                    next(listed(iter([asked]), metadata=sent))
                assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_health_and_reflection_answer(loaded):
    with (
        Server(ServerSettings(address="0"), Fixed(loaded)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        asked = health_pb2.HealthCheckRequest(service="bigdm.Policy")
        answer = health_pb2_grpc.HealthStub(channel).Check(asked)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        told = next(stub.ServerReflectionInfo(iter([listing])))
        names = {service.name for service in told.list_services_response.service}
        assert {"bigdm.Policy", "grpc.health.v1.Health"} <= names


def test_tls_and_certificates_of_clients(loaded, certificates, monkeypatch):
    pem, key, own, own_key = (
        str(certificates / name)
        for name in ("server.pem", "server.key", "client.pem", "client.key")
    )
    monkeypatch.setenv("BIGDM_TOKEN", TOKEN)
    settings = {"address": "0.0.0.0:0", "tls_cert": pem, "tls_key": key}
    with Server(ServerSettings(**settings), Fixed(loaded)) as server:
        assert server.exposure() is None
        address = f"127.0.0.1:{server.port}"
        with connect(address, tls=pem) as client:
            client.start()(GOOD)
        with pytest.raises(PolicyError, match="token is missing"):
            connect(address, tls=pem, token="")
        with pytest.raises(PolicyError):
            connect(address)
    with Server(ServerSettings(**settings, tls_client_ca=own), Fixed(loaded)) as server:
        address = f"127.0.0.1:{server.port}"
        with connect(address, tls=pem, certificate=own, key=own_key) as client:
            client.start()(GOOD)
        with pytest.raises(PolicyError):
            connect(address, tls=pem, timeout=5)


def test_sessions_have_limits_and_names_that_nobody_guesses(loaded):
    with serving(loaded, max_sessions=3) as client:
        mine = client.start(n=2)
        with pytest.raises(PolicyError, match="there are 2 sessions, of 3 at most") as told:
            client.start(n=2)
        assert told.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        other = client.start()
        assert len({*mine._sessions, *other._sessions}) == 3
        assert {len(one) for one in mine._sessions} == {16}
        other._sessions = [bytes(16)]
        with pytest.raises(PolicyError, match="not known here") as told:
            other(GOOD)
        assert told.value.code is grpc.StatusCode.NOT_FOUND
        mine.end()
        client.start(n=2)
        with pytest.raises(PolicyError, match="is named twice"):
            other._sessions = [bytes(16)] * 2
            other(GOOD)


def test_idle_sessions_end(loaded, capsys):
    with serving(loaded, max_idle=0.05, max_sessions=1) as client:
        mine = client.start()
        until = time.monotonic() + 60
        while "ended: idle for 0.05 s" not in capsys.readouterr().err:
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(PolicyError, match="was idle for too long"):
            mine(GOOD)
        client.start()


def test_a_message_may_be_too_large(loaded):
    with serving(loaded, max_message_mib=1) as client:
        mine = client.start()
        with pytest.raises(PolicyError) as told:
            mine(np.zeros(1 << 20, np.float32))
        assert told.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        client.start()(GOOD)


@pytest.mark.slow
def test_the_command_serves_reloads_and_ends_with_one_line(tmp_path, loaded):
    folder = run_folder(tmp_path / "run", loaded, (0, 1))
    command = [sys.executable, "-m", "bigdm_ray.serve", str(folder), "--address", "0"]
    process = subprocess.Popen(
        [*command, "--watch", "0.05"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving udrl on toy-vector (last weights, version 0.1) at 127."), (
            line or process.stderr.read()
        )
        with connect(line.split(" at ")[1].split()[0]) as client:
            mine = client.start()
            mine(GOOD)
            for step, ask in ((2, None), (3, signal.SIGHUP)):
                write_weights(folder, loaded, (0, step))
                if ask is not None:
                    process.send_signal(ask)
                assert (
                    process.stderr.readline() == f"weights of version 0.{step} for new sessions\n"
                )
                assert client.start().version == (0, step)
            assert mine.version == (0, 1) and mine(GOOD, 1.0) in (0, 1, 2)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
            assert process.returncode == 128 + signal.SIGTERM
            assert (out, err) == ("", "stopped: what was under way is answered\n")
            with pytest.raises(PolicyError) as told:
                mine(GOOD, 1.0)
            assert told.value.code is grpc.StatusCode.UNAVAILABLE
    finally:
        process.kill()
        process.wait()


def test_what_is_under_way_is_answered_when_the_server_ends(loaded, monkeypatch):
    versions = Fixed(loaded)
    policy = versions.served.policy("toy-vector", "")
    act, entered, gate = policy.act, threading.Event(), threading.Event()

    def slow(*arguments):
        entered.set()
        assert gate.wait(60)
        return act(*arguments)

    monkeypatch.setattr(policy, "act", slow)
    server = Server(ServerSettings(address="0"), versions)
    server.start()
    answers = []
    with connect(server.address) as client:
        mine = client.start(seed=1)
        thread = threading.Thread(target=lambda: answers.append(mine(GOOD)))
        thread.start()
        assert entered.wait(60)
        ending = threading.Thread(target=server.stop)
        ending.start()
        gate.set()
        thread.join(60)
        ending.join(60)
    assert answers == [loaded.act(seed=1)(GOOD)]


def test_mistakes_are_one_sentence(tmp_path, capsys, loaded):
    folder = str(run_folder(tmp_path / "run", loaded))
    for words, why in (
        ([str(tmp_path)], "holds no run.json"),
        ([folder, "--weights", "best"], "its last ones are there"),
        ([folder, "--mode", "plan"], "udrl has no planner"),
        ([folder, "--watch", "never"], "--watch"),
        ([folder, "--max-sessions", "0"], "--max-sessions is 0"),
        ([folder, "--address", "here"], "HOST:PORT is expected"),
        ([folder, "--algorithm.hidden", "3"], "was settled when the run was trained"),
    ):
        assert door(main, words) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
        assert why in said.err
