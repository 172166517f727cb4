"""The app answers only to its own names: another site's name that leads here (DNS rebinding) is refused."""

import socket
import urllib.error
import urllib.request

import pytest
from test_app import saved


pytest.importorskip("gradio", reason="the app needs gradio")

from modeling_mae.app.explorer import Explorer  # noqa: E402
from modeling_mae.app.page import Page  # noqa: E402
from modeling_mae.app.serving import launch  # noqa: E402


def status(url: str, host: str, path: str = "config") -> int:
    request = urllib.request.Request(url + path, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    saved(path)
    return Page(Explorer(str(path)))


@pytest.mark.parametrize("hosts", [(), ("mae.example.org",), ("*",)])
def test_the_page_answers_to_its_own_names(page, hosts):
    url = launch(page, hosts=hosts, wait=False)
    port = url.rstrip("/").rpartition(":")[2]
    try:
        own = ["localhost", f"127.0.0.1:{port}", "[::1]:7860", "192.168.0.7", socket.gethostname(), *hosts]
        assert [status(url, name) for name in own] == [200] * len(own)
        strange = ["attacker.example", f"attacker.example:{port}", "localhost.attacker.example", "mae.example.org"]
        expected = [200 if "*" in hosts or name in hosts else 403 for name in strange]
        assert [status(url, name) for name in strange] == expected
        assert status(url, "[::1") == 403  # no name at all
        assert status(url, "attacker.example", "gradio_api/info") == (200 if "*" in hosts else 403)
    finally:
        page.blocks.close(verbose=False)
