"""How the page looks, and how it is served."""

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import UserError
from .page import Page


LARGEST_FILE = "200mb"
SESSIONS = 100  # visitors whose images are kept in memory
# By default Gradio's titles hide patches of the pictures, and its galleries have a fixed height.
STYLE = """
#title h2, #title p {margin: 0}
#title, #message {padding: 0}
#title {overflow-wrap: anywhere}
#message p {margin: 0; padding: .35rem .75rem; border-radius: .4rem; background: #eef2f7; color: #24303f}
#message p.error {background: #fde8e8; color: #8f1d1d}
.dark #message p {background: #27303d; color: #dbe4ee}
.dark #message p.error {background: #4c1d1d; color: #fecaca}
#legend ul {list-style: none; margin: 0; padding: 0}
#legend span {display: inline-block; width: 1em; height: 1em; margin-right: .5em; border: 1px solid #888}
.pane img {cursor: default}
.pane.clickable img {cursor: crosshair}
.pane [data-testid=block-label] {position: static; border: none; background: none; padding: .4rem .6rem}
.pane .empty {min-height: 8rem}
.pane .grid-wrap {min-height: 0 !important; height: auto !important; max-height: none !important; overflow: hidden}
.pane .grid-container {padding-top: 0 !important; grid-template-rows: none !important; grid-auto-rows: max-content}
.pane .grid-container {grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important}
.pane .thumbnail-item {height: auto; aspect-ratio: auto; overflow: visible; border: none}
.pane .caption-label {position: static; max-width: 100%; text-align: center; padding: .2rem 0; border: none}
@media (max-width: 640px) {
.pane .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}
}
"""


class OwnHosts:
    """Answers only requests to an address, to this machine, or to one of `hosts`; "*" is any name.

    A stranger's page can have its own name lead here (DNS rebinding). Its requests still bear that name.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]):
        self.app, self.names = app, {"localhost", socket.gethostname().lower(), *map(str.lower, hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.answers(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
        else:
            refusal = PlainTextResponse("This page has another name: start it with --host and this one.\n", 403)
            await refusal(scope, receive, send)

    def answers(self, host: str) -> bool:
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.names or "*" in self.names:
                return True
            ipaddress.ip_address(name)
            return True
        return False


def launch(page: Page, port: int | None = None, hosts: Sequence[str] = (), wait: bool = True) -> str:
    """Serve the page and return its address. With `wait`, serve until Ctrl-C. `hosts` as in `OwnHosts`.

    Raises:
        UserError: the port is taken.
    """
    # System fonts, because Gradio's own themes may fetch fonts from the network.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, url, _ = page.blocks.launch(
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            prevent_thread_lock=True,
            max_file_size=LARGEST_FILE,
            state_session_capacity=SESSIONS,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(OwnHosts, hosts=hosts)]},
            theme=theme,
            css=STYLE,
        )
    except OSError:  # Gradio's message names Gradio's options
        raise UserError(f"--port {port} is taken or not allowed: give another, or none for a free one") from None
    if wait:
        print(f"open       {url}   (Ctrl-C ends)", flush=True)
        page.blocks.block_thread()
    return url
