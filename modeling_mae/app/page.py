"""The page of the app in Gradio: its layout, and what a click does."""

import functools
import html
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ..errors import UserError
from ..report.reconstruction import describe_shown
from ..words import counted
from . import views
from .explorer import Explorer, Folder, Look, Segmented


CLICKED = "clicked"  # the kind of mask that the visitor clicked
KINDS = ("random", "block", "grid", CLICKED)
NEIGHBOURS = 8
ALL = -1  # in place of a class: all are shown
STRENGTH = 0.5  # of the classes' colours, at the start
SAMPLES = 8  # images of the folder to choose from
KEPT = (3600, 24 * 3600)  # seconds between two clean-ups of uploaded files, and how long files are kept
NO_DECODER = (
    "No reconstruction: this checkpoint is {kind} and has no decoder. Give one of `run_pretrain.py` to see how "
    "the model reconstructs hidden patches."
)


@dataclass
class Session:
    """The state of one visitor."""

    look: Look
    mask: torch.Tensor  # bool (patches,), true = hidden
    patch: int  # the patch whose attention is shown
    seed: int = 0  # of the drawn masks


def showing_errors(answer):
    """Times a handler of `Page`. On a UserError the page shows its message, and nothing else changes."""

    @functools.wraps(answer)
    def handler(self, *args):
        start = time.perf_counter()
        try:
            changes, what = answer(self, *args)
        except UserError as error:
            return {self.message: f'<p class="error">{html.escape(" ".join(str(error).split()))}</p>'}
        seconds = time.perf_counter() - start
        return {**changes, self.message: f"<p>{html.escape(what)} ({seconds:.1f} s)</p>"}

    return handler


class Page:
    """The components and their event handlers. Gradio launches `blocks`."""

    def __init__(self, explorer: Explorer, folder: Folder | None = None, title: str | None = None):
        self.explorer, self.folder = explorer, folder
        # Gradio must not report usage, nor keep uploads for ever.
        title = title or explorer.checkpoint
        with gr.Blocks(title=title, fill_width=True, analytics_enabled=False, delete_cache=KEPT) as self.blocks:
            self.session = gr.State()
            heading = f"<h2>{html.escape(title)}</h2><p>{html.escape(describe(explorer, folder))}</p>"
            gr.HTML(heading, elem_id="title")
            self.message = gr.HTML("<p>Drop an image in to begin.</p>", elem_id="message")
            with gr.Row():
                with gr.Column(scale=1, min_width=250):
                    self._controls()
                with gr.Column(scale=4):
                    self._panes()
            self._connect()

    def _controls(self) -> None:
        explorer = self.explorer
        self.file = gr.File(label="Image", file_count="single", type="filepath", height=130, elem_id="file")
        self.samples = None
        if self.folder:
            self.sampled = range(0, len(self.folder), max(1, len(self.folder) // SAMPLES))[:SAMPLES]
            self.samples = gr.Gallery(
                [self.folder.pictures[place].numpy() for place in self.sampled],
                label="or one of the folder",
                columns=4,
                height="auto",
                allow_preview=False,
                format="png",
                buttons=[],
                elem_id="samples",
                elem_classes="pane",
            )
        highest = round(1 - math.ceil(100 / explorer.config.num_patches) / 100, 2)  # one patch stays visible
        kind, ratio = explorer.config.mask_type, explorer.config.mask_ratio
        has_decoder = explorer.reconstructs
        self.kind = gr.Radio(KINDS, value=kind, label="Kind of mask", visible=has_decoder, elem_id="kind")
        self.ratio = gr.Slider(
            0.01,
            highest,
            value=min(ratio, highest),
            step=0.01,
            label="Part hidden",
            visible=has_decoder,
            elem_id="ratio",
        )
        self.again = gr.Button("Another mask", visible=has_decoder, elem_id="again")
        self.block = gr.Slider(
            1, explorer.depth, value=explorer.depth, step=1, label="Block of the encoder", elem_id="block"
        )
        self.strength = gr.Slider(
            0, 1, value=STRENGTH, step=0.05, label="Strength of colours", visible=explorer.segments, elem_id="strength"
        )
        self.alone = gr.Radio(
            [("all classes", ALL)], value=ALL, label="Class", visible=explorer.segments, elem_id="alone"
        )

    def _panes(self) -> None:
        explorer = self.explorer
        with gr.Row():
            self.classes = pane("Classes: click one", "classes", clickable=True, visible=explorer.segments)
            self.original = pane("Image: click to frame a patch", "original", clickable=True)
            self.masked = pane("Masked: click to change", "masked", clickable=True, visible=explorer.reconstructs)
            self.reconstruction = pane("Reconstruction", "reconstruction", visible=explorer.reconstructs)
            with gr.Column(visible=not explorer.reconstructs):
                self.scores = gr.Label(label="Classes", visible=explorer.classifies, elem_id="scores")
                self.legend = gr.HTML(visible=explorer.segments, elem_id="legend")
                kind = kind_of(explorer)
                gr.Markdown(
                    NO_DECODER.format(kind=f"{'an' if kind.startswith('e') else 'a'} {kind}"), elem_id="no-decoder"
                )
        with gr.Row():
            self.class_attention = pane("Class token's attention", "class-attention")
            self.patch_attention = pane("Patch's attention", "patch-attention")
            self.components = pane("Principal components of patches", "components")
        self.neighbours = gr.Gallery(
            label="Nearest in the folder (cosine similarity)",
            columns=NEIGHBOURS,
            height="auto",
            allow_preview=False,
            format="png",
            buttons=[],
            visible=self.folder is not None,
            elem_id="neighbours",
            elem_classes="pane",
        )

    def _connect(self) -> None:
        shown = [self.original, self.class_attention, self.patch_attention, self.components]
        masked = [self.masked, self.reconstruction]
        classes = [self.classes, self.legend, self.alone]
        everything = [self.session, self.message, self.kind, *shown, *masked, self.scores, *classes, self.neighbours]
        settings = [self.kind, self.ratio, self.block, self.strength]
        quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "concurrency_id": "model"}
        opening = {**quiet, "show_progress": "minimal"}
        self.file.upload(self.open_file, [self.file, *settings], everything, **opening)
        if self.samples:
            self.samples.select(self.open_sample, settings, everything, **opening)
        self.neighbours.select(self.open_neighbour, [self.session, *settings], everything, **opening)
        drawing = [self.session, self.message, *masked]
        for event in (self.kind.input, self.ratio.input):
            event(self.draw, [self.session, self.kind, self.ratio], drawing, **quiet)
        self.again.click(self.draw_again, [self.session, self.kind, self.ratio], [*drawing, self.kind], **quiet)
        self.masked.select(self.click_masked, [self.session], [*drawing, self.kind], **quiet)
        looking = [self.session, self.message, *shown]
        self.original.select(self.click_original, [self.session, self.block], looking, **quiet)
        self.block.input(self.choose_block, [self.session, self.block], looking, **quiet)
        colouring, chosen = [self.message, self.classes, self.alone], [self.session, self.strength, self.alone]
        for event in (self.strength.input, self.alone.input):
            event(self.colour, chosen, colouring, **quiet)
        self.classes.select(self.click_class, chosen, colouring, **quiet)

    # --- event handlers ---

    @property
    def _folder(self) -> Folder:
        assert self.folder is not None  # only its own images call this
        return self.folder

    @showing_errors
    def open_file(self, path: str, *settings: Any):
        return self._open(self.explorer.open_file(Path(path)), *settings)

    @showing_errors
    def open_sample(self, kind: str, ratio: float, block: int, strength: float, event: gr.SelectData):
        return self._open(self._folder.look(self.sampled[event.index]), kind, ratio, block, strength)

    @showing_errors
    def open_neighbour(
        self, session: Session, kind: str, ratio: float, block: int, strength: float, event: gr.SelectData
    ):
        place, _ = self._folder.neighbours(opened(session).look, NEIGHBOURS)[event.index]
        return self._open(self._folder.look(place), kind, ratio, block, strength)

    @showing_errors
    def draw(self, session: Session | None, kind: str, ratio: float):
        return self._draw(opened(session), kind, ratio)

    @showing_errors
    def draw_again(self, session: Session | None, kind: str, ratio: float):
        session = opened(session)
        session.seed += 1
        drawn = self.explorer.config.mask_type if kind == CLICKED else kind
        changes, what = self._draw(session, drawn, ratio)
        return {**changes, self.kind: drawn}, what

    @showing_errors
    def click_masked(self, session: Session | None, event: gr.SelectData):
        session = opened(session)
        session.mask = views.toggled(session.mask, self._patch(event))
        changes, what = self._masked(session)
        return {**changes, self.kind: CLICKED}, what

    @showing_errors
    def click_original(self, session: Session | None, block: int, event: gr.SelectData):
        session = opened(session)
        session.patch = self._patch(event)
        return {self.session: session, **self._encoded(session, block)}, self._place(session.patch)

    @showing_errors
    def choose_block(self, session: Session | None, block: int):
        return self._encoded(opened(session), block), f"block {block} of {self.explorer.depth}"

    @showing_errors
    def colour(self, session: Session | None, strength: float, alone: int):
        return self._coloured(opened(session).look, strength, alone)

    @showing_errors
    def click_class(self, session: Session | None, strength: float, alone: int, event: gr.SelectData):
        """Shows the clicked class alone, or all if it is alone already."""
        look = opened(session).look
        assert look.segmented is not None  # only its picture calls this
        mask, factor = look.segmented.mask, views.enlargement(look.segmented.mask.shape)
        x, y = (min(int(place) // factor, side - 1) for place, side in zip(event.index, mask.shape[::-1], strict=True))
        clicked = int(mask[y, x])
        chosen = ALL if clicked == alone else clicked
        changes, what = self._coloured(look, strength, chosen)
        return {**changes, self.alone: chosen}, what

    # --- their answers ---

    def _open(self, look: Look, kind: str, ratio: float, block: int, strength: float):
        rows, columns = self.explorer.grid
        session = Session(look, torch.zeros(rows * columns, dtype=torch.bool), rows // 2 * columns + columns // 2)
        changes = {self.session: session, **self._encoded(session, block)}
        what = look.name
        if self.explorer.reconstructs:
            drawn, hidden = self._draw(session, kind, ratio)
            changes, what = {**changes, **drawn}, f"{what}: {hidden}"
        if look.scores is not None:
            changes[self.scores] = look.scores
        if look.segmented is not None:
            coloured, _ = self._coloured(look, strength, ALL)
            named = [(f"{self.explorer.names[i]} {share:.1%}", i) for i, share in look.segmented.shares.items()]
            changes |= coloured
            changes[self.alone] = gr.Radio([("all classes", ALL), *named], value=ALL)
            changes[self.legend] = legend(self.explorer, look.segmented)
        if self.folder:
            changes[self.neighbours] = [
                (self.folder.pictures[place].numpy(), f"{similarity:.2f}  {self.folder.name(place)}")
                for place, similarity in self.folder.neighbours(look, NEIGHBOURS)
            ]
        return changes, what

    def _coloured(self, look: Look, strength: float, alone: int):
        segmented = look.segmented
        assert segmented is not None  # only a segmentation shows classes
        picture = segmented.picture(self.explorer.colours, strength, None if alone == ALL else alone)
        changes = {self.classes: views.enlarged(torch.from_numpy(picture)).numpy()}
        if alone == ALL:
            return changes, f"{look.name}: {counted(len(segmented.shares), 'class', 'classes')}"
        return changes, f"{look.name}: {self.explorer.names[alone]} alone, {segmented.shares[alone]:.1%} of the pixels"

    def _draw(self, session: Session, kind: str, ratio: float):
        if kind == CLICKED:
            session.mask = torch.zeros_like(session.mask)
        else:
            session.mask = views.drawn_mask(kind, ratio, self.explorer.grid, session.seed)
        return self._masked(session)

    def _masked(self, session: Session):
        look, mask, grid = session.look, session.mask, self.explorer.grid
        hidden, patches = int(mask.sum()), len(mask)
        masked = views.enlarged(views.with_hidden(look.picture, mask, grid)).numpy()
        changes = {
            self.session: session,
            self.masked: gr.Image(masked, label=f"Masked, {hidden} of {patches}: click to change"),
        }
        if hidden in (0, patches):
            remedy = "click patches of the masked picture to hide them" if hidden == 0 else "click one to show it"
            changes[self.reconstruction] = gr.Image(None, label="Reconstruction")
            return changes, f"{hidden} of {patches} patches hidden: {remedy}"
        picture, loss = self.explorer.reconstruct(look, mask)
        changes[self.reconstruction] = gr.Image(
            views.enlarged(picture).numpy(), label=f"Reconstruction: loss {loss:.3f}"
        )
        return changes, f"{hidden} of {patches} patches hidden"

    def _encoded(self, session: Session, block: int) -> dict:
        look, grid, patch, explorer = session.look, self.explorer.grid, session.patch, self.explorer
        original = views.enlarged(look.picture)
        by_class, by_patch = (explorer.attention(look, token, block) for token in (0, 1 + patch))
        colours = views.as_colours(views.principal_components(explorer.patch_features(look, block)))
        return {
            self.original: views.with_frame(original, patch, grid).numpy(),
            self.class_attention: gr.Image(
                views.with_heat(original, by_class[1:], grid).numpy(),
                label=f"Class token's attention ({by_class[0]:.0%} to itself)",
            ),
            self.patch_attention: gr.Image(
                views.with_frame(views.with_heat(original, by_patch[1:], grid), patch, grid).numpy(),
                label=f"Patch's attention ({by_patch[0]:.0%} to class token)",
            ),
            self.components: views.with_colours(colours, grid, original.shape[:2]).numpy(),
        }

    def _patch(self, event: gr.SelectData) -> int:
        """The patch that was clicked. Gradio gives the click in pixels of the picture that it was sent."""
        factor = views.enlargement(self.explorer.size)
        height, width = (side * factor for side in self.explorer.size)
        x, y = event.index
        return views.patch_at(x, y, (height, width), self.explorer.grid)

    def _place(self, patch: int) -> str:
        columns = self.explorer.grid[1]
        return f"patch in row {patch // columns + 1}, column {patch % columns + 1}"


def pane(label: str, name: str, clickable: bool = False, visible: bool = True) -> gr.Image:
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        buttons=[],
        visible=visible,
        elem_id=name,
        elem_classes=["pane", "clickable"] if clickable else ["pane"],
    )


def opened(session: Session | None) -> Session:
    """The session, if an image has been opened; else raises a UserError."""
    if session is None:
        raise UserError("no image yet: drop one in")
    return session


def legend(explorer: Explorer, segmented: Segmented) -> str:
    """The classes of an image as HTML: colour, name and share of the pixels."""
    rows = [
        f'<li><span style="background: rgb({", ".join(map(str, explorer.colours[i]))})"></span>'
        f"{html.escape(str(explorer.names[i]))} <b>{share:.1%}</b></li>"
        for i, share in segmented.shares.items()
    ]
    return f"<ul>{''.join(rows)}</ul>"


def kind_of(explorer: Explorer) -> str:
    """What the checkpoint is, in a word or three."""
    if explorer.segments:
        return "segmentation"
    return "classifier" if explorer.classifies else "encoder and decoder" if explorer.reconstructs else "encoder"


def describe(explorer: Explorer, folder: Folder | None) -> str:
    """One line about the checkpoint and the folder."""
    config, kind = explorer.config, kind_of(explorer)
    (height, width), (patch_height, patch_width) = explorer.size, config.patch_height_width
    channels = counted(config.num_channels, "channel")
    parts = [
        f"{kind}, {counted(config.num_hidden_layers, 'block')} of width {config.hidden_size}",
        f"images of {height} x {width} pixels, {channels}, patches of {patch_height} x {patch_width}",
    ]
    if explorer.guessed:
        parts.append("no image processor, so ImageNet's mean and deviation are used")
    if folder:
        part = f"{len(folder):,} of {folder.total:,}" if len(folder) < folder.total else f"{len(folder):,}"
        parts.append(f"neighbours among {part} images")
    sentence = "; ".join(parts) + "."
    return " ".join(
        [sentence[0].upper() + sentence[1:], describe_shown(config.num_channels, explorer.processing.bands)]
    )
