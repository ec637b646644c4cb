"""A hub that refuses or is down: one line that says what to do. A server here stands in for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.models.weights import ModelSource, WeightsError, resolve

MODEL = ModelSource("some-model", hub_id="some/model", revision="0123456789abcdef")


class Hub(HTTPServer):
    """Answers every request alike.

    Attributes:
        status: HTTP status of the answers.
        code: What the hub says in a header of its own.
        authorization: header of the last request; the hub repeats it in its error.
    """

    status = 200
    code = ""
    authorization = ""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        if self.server.code:
            self.send_header("X-Error-Code", self.server.code)
        self.server.authorization = self.headers.get("Authorization", "")
        self.send_header("X-Error-Message", f"no access with {self.server.authorization}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[str], None]
) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    fault("hub that refuses or is down")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def trouble() -> str:
    with pytest.raises(WeightsError) as raised:
        resolve(MODEL)
    message = str(raised.value)
    assert "\n" not in message
    assert "--model-path DIR" in message and "hf download some/model" in message
    return message


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_says_how_to_get_access(status: int, hub: Hub) -> None:
    hub.status, hub.code = status, "GatedRepo"
    message = trouble()
    assert "some/model is gated: ask for access on https://huggingface.co/some/model" in message
    assert "`hf auth login`" in message


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "", "the hub refuses some/model (401): log in"),
        (403, "", "the hub refuses some/model (403): log in"),
        (404, "RepoNotFound", "the hub refuses some/model (404): log in"),
        (503, "", "the hub is down (503)"),
        (500, "", "the hub is down (500)"),
    ],
)
def test_a_hub_that_refuses_or_is_down(status: int, code: str, expected: str, hub: Hub) -> None:
    hub.status, hub.code = status, code
    assert expected in trouble()


def test_a_hub_that_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in trouble()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the hub is switched off (HF_HUB_OFFLINE)" in trouble()


def test_a_hub_that_repeats_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_thisIsNoTokenButItLooksLikeOne"
    monkeypatch.setenv("HF_TOKEN", token)
    hub.status = 401
    assert token not in trouble()
    assert hub.authorization == f"Bearer {token}"
