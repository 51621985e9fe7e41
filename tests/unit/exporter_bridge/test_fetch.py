"""Pages over real sockets: what ends a transfer, and under which name."""

import asyncio
import base64
import socket
import ssl
import threading
import time
from pathlib import Path

import pycurl
import pytest

from exporter_bridge.fetch import Fetcher
from exporter_bridge.targets import Access


async def fetch(url, access=Access(), seconds=5.0, body_limit=100_000):  # noqa: B008 - a frozen value
    loop = asyncio.get_running_loop()
    fetcher = Fetcher(loop, body_limit_bytes=body_limit, kept_connections=10)
    try:
        return await ask(fetcher, url, access, seconds)
    finally:
        fetcher.close()


async def ask(fetcher, url, access=Access(), seconds=5.0):  # noqa: B008 - a frozen value
    answered = asyncio.get_running_loop().create_future()
    fetcher.start(url, access, seconds, answered.set_result)
    return await answered


def test_a_page_is_fetched_whole_and_its_time_is_told(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            return await fetch(exporter.url())

    answer = on_loop(run())
    assert answer.body.decode() == loopback.PAGE
    assert (answer.reason, answer.detail) == (None, "")
    assert 0 < answer.seconds < 5


def failures(loopback):
    return {
        "http_401": loopback.http("no", "401 Unauthorized"),
        "http_500": loopback.http("no", "500 Internal Server Error"),
        "http_302": loopback.http("", "302 Found"),
        "http_204": loopback.http("", "204 No Content"),
        "empty": loopback.http(""),
        "too_large": loopback.http("x" * 100_001),
        "truncated": loopback.http("x", length=2),
        "timeout": loopback.hang,
    }


@pytest.mark.parametrize(
    "reason", ["http_401", "http_500", "http_302", "http_204", "empty", "too_large", "truncated", "timeout"]
)
def test_a_transfer_that_fails_says_why(reason, on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter(failures(loopback)[reason])) as exporter:
            return await fetch(exporter.url(), seconds=0.2 if reason == "timeout" else 5)

    answer = on_loop(run())
    assert (answer.reason, answer.body) == (reason, b"")
    assert answer.detail


def test_a_connection_closed_without_an_answer_is_truncated(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter(loopback.hang_up)) as exporter:
            return await fetch(exporter.url())

    assert on_loop(run()).reason == "truncated"


def test_a_body_of_unknown_length_that_passes_the_limit_is_too_large(on_loop, loopback):
    async def endless(_head, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            await writer.drain()

    async def run():
        async with loopback.serving(loopback.Exporter(endless)) as exporter:
            return await fetch(exporter.url())

    assert on_loop(run()).reason == "too_large"


def test_a_chunked_body_cut_short_is_truncated(on_loop, loopback):
    async def cut(_head, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        writer.close()

    async def run():
        async with loopback.serving(loopback.Exporter(cut)) as exporter:
            return await fetch(exporter.url())

    assert on_loop(run()).reason == "truncated"


def test_a_port_that_nobody_listens_on_is_connection_refused(on_loop, free_ports):
    (port,) = free_ports(1)
    assert on_loop(fetch(f"http://127.0.0.1:{port}/")).reason == "connection_refused"


def test_a_name_that_does_not_resolve_is_dns(on_loop):
    assert on_loop(fetch("http://no-such-host.invalid:9400/", seconds=10)).reason == "dns"


def test_a_connection_is_used_again_for_the_next_page(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=10)
            for _ in range(5):
                assert (await ask(fetcher, exporter.url())).reason is None
            fetcher.close()
            return exporter

    exporter = on_loop(run())
    assert (len(exporter.requests), exporter.connections) == (5, 1)


def test_a_kept_connection_that_the_exporter_closed_meanwhile_is_no_failure(on_loop, loopback):
    async def answer_and_close(head, writer):
        await loopback.http()(head, writer)
        writer.close()

    async def run():
        async with loopback.serving(loopback.Exporter(answer_and_close)) as exporter:
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=10)
            answers = []
            for _ in range(3):
                answers.append(await ask(fetcher, exporter.url()))
                await asyncio.sleep(0.02)
            fetcher.close()
            return answers, exporter.connections

    answers, connections = on_loop(run())
    assert [answer.reason for answer in answers] == [None] * 3
    assert connections == 3


def test_a_hanging_exporter_costs_the_others_nothing(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(answers={"/hang": loopback.hang})
        async with loopback.serving(exporter):
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=10)
            hanging = [asyncio.ensure_future(ask(fetcher, exporter.url("/hang"), seconds=20)) for _ in range(50)]
            answers = [await ask(fetcher, exporter.url()) for _ in range(20)]
            still = sum(not task.done() for task in hanging)
            under_way = fetcher.under_way
            fetcher.close()
            for task in hanging:
                task.cancel()
            return answers, still, under_way

    answers, still, under_way = on_loop(run())
    assert {answer.reason for answer in answers} == {None}
    assert (still, under_way) == (50, 50)


def test_closing_does_not_wait_for_a_name_whose_lookup_hangs(on_loop, monkeypatch):
    looked_up = threading.Event()

    class Waiting(pycurl.CurlMulti):
        """Closes as libcurl does while a name is looked up."""

        def close(self):
            looked_up.wait()
            super().close()

    monkeypatch.setattr("exporter_bridge.fetch.pycurl.CurlMulti", Waiting)
    monkeypatch.setattr("exporter_bridge.fetch._CLOSING_SECONDS", 0.01)

    async def run():
        fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=10)
        began = time.monotonic()
        # Let go in any case, so that a test that fails ends.
        threading.Timer(5, looked_up.set).start()
        fetcher.close()
        return time.monotonic() - began

    took = on_loop(run())
    looked_up.set()
    assert took < 4


def test_time_outs_of_every_length_come_in_time_while_other_transfers_come_and_go(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(answers={"/hang": loopback.hang})
        async with loopback.serving(exporter):
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=10)
            limits = [1.2, 0.1, 0.6, 0.3, 0.9, 0.2]
            hanging = [asyncio.ensure_future(ask(fetcher, exporter.url("/hang"), seconds=limit)) for limit in limits]
            while not all(task.done() for task in hanging[1:]):
                await ask(fetcher, exporter.url())
            # The longest is waited for with nothing else going on.
            answers = await asyncio.gather(*hanging)
            fetcher.close()
            return [(answer.reason, answer.seconds - limit) for answer, limit in zip(answers, limits, strict=True)]

    for reason, late in on_loop(run()):
        assert reason == "timeout"
        assert -0.01 <= late < 1


def test_no_proxy_of_the_environment_stands_between(on_loop, loopback, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            return await fetch(exporter.url())

    assert on_loop(run()).reason is None


def test_basic_authentication_sends_the_password_of_the_file_as_it_stands_now(on_loop, loopback, tmp_path, monkeypatch):
    monkeypatch.setattr("exporter_bridge.fetch._CREDENTIALS_CHECK_SECONDS", 0)
    password = tmp_path / "password"
    password.write_text("first:colon\n")
    access = Access(username="scraper", password_file=str(password))

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=10)
            await ask(fetcher, exporter.url(), access)
            password.write_text("second\n")
            await ask(fetcher, exporter.url(), access)
            await ask(fetcher, exporter.url())
            fetcher.close()
            return exporter.requests

    first, second, plain = on_loop(run())
    assert f"Basic {base64.b64encode(b'scraper:first:colon').decode()}\r\n" in first
    assert f"Basic {base64.b64encode(b'scraper:second').decode()}\r\n" in second
    assert "Authorization" not in plain


def test_a_bearer_token_comes_from_its_file(on_loop, loopback, tmp_path):
    token = tmp_path / "token"
    token.write_text("t0ken\n")

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            await fetch(exporter.url(), Access(bearer_token_file=str(token)))
            return exporter.requests

    assert "Authorization: Bearer t0ken\r\n" in on_loop(run())[0]


def test_secrets_beyond_ascii_are_sent_as_utf8(on_loop, loopback, tmp_path):
    secret = tmp_path / "geheimnis-für-alle"
    secret.write_text("pässwört\n", "utf-8")

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            basic = await fetch(exporter.url(), Access(username="müller", password_file=str(secret)))
            bearer = await fetch(exporter.url(), Access(bearer_token_file=str(secret)))
            return [basic.reason, bearer.reason], exporter.requests

    reasons, (basic, bearer) = on_loop(run())
    assert reasons == [None, None]
    assert f"Basic {base64.b64encode('müller:pässwört'.encode()).decode()}\r\n" in basic
    assert "Authorization: Bearer pässwört\r\n" in bearer


def test_files_of_certificates_may_have_any_name(on_loop, loopback, certificates, tmp_path):
    files = {}
    for name, ending in (("cert_file", "pem"), ("key_file", "key")):
        files[name] = str(tmp_path / f"brücke.{ending}")
        Path(files[name]).write_bytes((certificates / f"client.{ending}").read_bytes())
    access = Access(ca_file=str(certificates / "ca.pem"), **files)
    assert on_loop(fetch_tls(loopback, server_tls(certificates, ask_client=True), access)).reason is None


def test_an_address_beyond_ascii_is_said_to_be_one_and_not_shown(on_loop):
    answer = on_loop(fetch("http://127.0.0.1:1/?token=gehäim"))
    assert (answer.reason, answer.detail) == ("configuration", "expected a URL in ASCII")


def test_what_is_kept_of_credentials_that_come_and_go_is_bounded(on_loop, loopback, tmp_path, monkeypatch):
    monkeypatch.setattr("exporter_bridge.fetch._IDLE_HANDLES", 5)
    monkeypatch.setattr("exporter_bridge.fetch._MOST_CREDENTIALS", 5)
    token = tmp_path / "token"
    token.write_text("t0ken\n")

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=10)
            for number in range(20):
                access = Access(bearer_token_file=str(token), server_name=f"name-{number}")
                assert (await ask(fetcher, exporter.url(), access)).reason is None
            kept = sum(map(len, fetcher._idle.values())), fetcher._idle_count, len(fetcher._credentials)
            fetcher.close()
            return kept

    assert on_loop(run()) == (5, 5, 5)


def test_a_secret_that_cannot_be_read_is_a_failure_that_names_the_file(on_loop, tmp_path):
    missing = str(tmp_path / "missing")
    answer = on_loop(fetch("http://127.0.0.1:1/", Access(bearer_token_file=missing)))
    assert answer.reason == "credentials"
    assert missing in answer.detail


def server_tls(folder: Path, *, ask_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")
    return context


async def fetch_tls(loopback, context, access):
    async with loopback.serving(loopback.Exporter(), context) as exporter:
        return await fetch(exporter.url(scheme="https"), access)


def test_a_certificate_of_the_given_authority_is_accepted(on_loop, loopback, certificates):
    access = Access(ca_file=str(certificates / "ca.pem"))
    assert on_loop(fetch_tls(loopback, server_tls(certificates), access)).reason is None


def test_a_certificate_of_an_unknown_authority_is_a_failure_of_tls(on_loop, loopback, certificates):
    assert on_loop(fetch_tls(loopback, server_tls(certificates), Access())).reason == "tls"


def test_a_certificate_for_another_name_is_accepted_under_that_name_only(on_loop, loopback, certificates):
    ca_file = str(certificates / "ca.pem")
    known = Access(ca_file=ca_file, server_name="exporter.test")
    other = Access(ca_file=ca_file, server_name="another.test")
    assert on_loop(fetch_tls(loopback, server_tls(certificates), known)).reason is None
    assert on_loop(fetch_tls(loopback, server_tls(certificates), other)).reason == "tls"


def test_an_exporter_that_asks_for_a_client_certificate_gets_it(on_loop, loopback, certificates):
    context = server_tls(certificates, ask_client=True)
    files = {
        name: str(certificates / f"client.{ending}") for name, ending in (("cert_file", "pem"), ("key_file", "key"))
    }
    access = Access(ca_file=str(certificates / "ca.pem"), **files)
    assert on_loop(fetch_tls(loopback, context, access)).reason is None


def test_plain_http_where_tls_is_expected_is_a_failure_of_tls(on_loop):
    async def run():
        def connected(_reader, writer):
            writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            return await fetch(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    assert on_loop(run()).reason == "tls"


def test_something_that_speaks_no_http_is_another_failure(on_loop, loopback):
    async def mumble(_head, writer):
        writer.write(b"220 smtp ready\r\n\r\n")
        writer.close()

    async def run():
        async with loopback.serving(loopback.Exporter(mumble)) as exporter:
            return await fetch(exporter.url())

    assert on_loop(run()).reason == "other"


def test_a_listener_that_never_accepts_is_a_timeout(on_loop):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.settimeout(0)
                filler.connect_ex(("127.0.0.1", port))
            assert on_loop(fetch(f"http://127.0.0.1:{port}/", seconds=0.3)).reason == "timeout"
        finally:
            for filler in fillers:
                filler.close()
