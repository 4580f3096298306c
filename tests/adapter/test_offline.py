import socket
import threading
import time
from email.message import Message
from http.client import BadStatusLine
from urllib.error import HTTPError, URLError

import nltk
import pytest

from flexgen_helm.adapter import offline


@pytest.fixture
def nowhere(monkeypatch):
    """A machine without nltk's data and without network."""
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr(offline, "accepts_connection", lambda *_, **__: False)
    monkeypatch.setattr(nltk, "download", download := pytest.fail)
    return download


def test_downloads_are_refused_without_network(nowhere, monkeypatch):
    said = []
    monkeypatch.setattr(offline, "hwarn", said.append)
    offline.bound_downloads()
    assert nltk.download("punkt_tab") is False
    [warning] = said
    assert "BLEU and bias metrics will fail" in warning
    assert "NLTK_DATA" in warning


def test_downloads_are_left_alone_where_nothing_is_missing(nowhere, monkeypatch):
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    offline.bound_downloads()
    assert nltk.download is nowhere


def test_downloads_are_left_alone_behind_a_proxy(nowhere, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    offline.bound_downloads()
    assert nltk.download is nowhere


def test_downloads_are_left_alone_with_network(nowhere, monkeypatch):
    monkeypatch.setattr(offline, "accepts_connection", lambda *_, **__: True)
    offline.bound_downloads()
    assert nltk.download is nowhere


def test_a_network_that_swallows_everything_is_given_up_in_time(monkeypatch):
    given_up = threading.Event()

    def swallow(*_, **__):
        given_up.wait(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", swallow)
    start = time.monotonic()
    assert not offline.accepts_connection("example.org", timeout_s=0.05)
    assert time.monotonic() - start < 5
    given_up.set()


def test_a_refused_connection_is_no_network(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert not offline.accepts_connection("example.org", timeout_s=5)


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (HTTPError("https://example.org", 403, "no", Message(), None), True),
        (URLError("Tunnel connection failed: 403 Forbidden"), False),
        (BadStatusLine("?"), False),
        (ValueError("unknown url type"), False),
    ],
)
def test_a_server_answers_whatever_it_says_and_a_proxy_is_none(monkeypatch, outcome, answer):
    def ask(request, *, timeout):
        raise outcome

    monkeypatch.setattr(offline, "urlopen", ask)
    assert offline.answers_request("https://example.org") is answer
