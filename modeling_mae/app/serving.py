"""How the page looks, and how it is served."""

import gradio as gr

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


def launch(page: Page, port: int | None = None, wait: bool = True) -> str:
    """Serve the page and return its address. With `wait`, serve until Ctrl-C.

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
            theme=theme,
            css=STYLE,
        )
    except OSError:  # Gradio's message names Gradio's options
        raise UserError(f"--port {port} is taken or not allowed: give another, or none for a free one") from None
    if wait:
        print(f"open       {url}   (Ctrl-C ends)", flush=True)
        page.blocks.block_thread()
    return url
