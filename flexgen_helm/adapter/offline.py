"""Keeping HELM from waiting minutes for downloads on a machine without internet.

HELM fetches nltk's sentence tokenizer when the module of its reference metrics is imported, which
most runs need although few use the tokenizer. Without name resolution that fails at once; behind a
firewall that drops packets nltk waits for 120 seconds.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from helm.common.hierarchical_logger import hwarn

HOST = "raw.githubusercontent.com"
"""Where nltk's data lies."""

PATIENCE_S = 3.0
"""How long a network may take to be there."""


def bound_downloads() -> None:
    """Let nltk not try to download where it would wait in vain; HELM takes that as a failed try."""
    if _has_tokenizer() or _behind_proxy() or accepts_connection(HOST, timeout_s=PATIENCE_S):
        return
    import nltk

    hwarn(
        f"nltk's punkt_tab is not installed and {HOST} is out of reach: BLEU and bias metrics will"
        " fail. Put tokenizers/punkt_tab into a directory named by NLTK_DATA if you need them."
    )
    nltk.download = lambda *_, **__: False


def accepts_connection(host: str, *, timeout_s: float) -> bool:
    """Whether a host takes a connection to its TLS port, with no proxy in between."""
    return _in_time(lambda: _connects(host, timeout_s), timeout_s)


def answers_request(url: str, *, timeout_s: float = 10.0) -> bool:
    """Whether a server answers a request, whatever it may say, through a proxy if there is one."""
    return _in_time(lambda: _answers(url, timeout_s), timeout_s)


def _in_time(asks: Callable[[], bool], timeout_s: float) -> bool:
    """Name resolution has no timeout of its own, hence the thread."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(asks()), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return any(answers)


def _answers(url: str, timeout_s: float) -> bool:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=timeout_s):
            return True
    except HTTPError:
        return True
    except (OSError, HTTPException, ValueError):  # ValueError: no URL at all
        return False


def _connects(host: str, timeout_s: float) -> bool:
    try:
        with socket.create_connection((host, 443), timeout=timeout_s):
            return True
    except OSError:
        return False


def _has_tokenizer() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def _behind_proxy() -> bool:
    """Whether downloads take a way we cannot probe."""
    return any(name.lower() == "https_proxy" and value for name, value in os.environ.items())
