"""The page: what stands on it, and which function answers which event."""

from __future__ import annotations

from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from afmi.app import words, work
from afmi.app.choices import REFERENCES, Choices
from afmi.app.handlers import NO_CLASS, Handlers, with_event, with_progress
from afmi.app.photographs import Example, examples_of
from afmi.app.sessions import Session
from afmi.pictures.plots import OPACITY

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["page"]

_HEAVY = 4
"""How many visitors' explanations are computed at once; others wait for their turn."""
_LIGHT = 8
"""The same of what answers at once, which does not wait behind explanations."""
_ARRIVING = 2
"""How many photographs are read at once: one of many pixels takes more than a gigabyte."""
_WAITING = 64
_OFTEN, _OLD = 600, 3600
"""Seconds: how often files are looked at, and how old they become."""
_SETTINGS = ("session", "of", "versus", "method", "reference", "layer")
_PLAIN: dict[str, Any] = {"api_visibility": "private"}
_AT_ONCE = {**_PLAIN, "concurrency_id": "light", "concurrency_limit": _LIGHT}
_QUIET = {**_AT_ONCE, "show_progress": "hidden"}
_ARRIVAL = {**_QUIET, "concurrency_id": "arrivals", "concurrency_limit": _ARRIVING}
# Gradio decodes nothing of what was uploaded: only our own readers see its bytes.
_UPLOAD = {**_ARRIVAL, "preprocess": False}
_HEAVY_WORK = {**_PLAIN, "concurrency_id": "heavy", "concurrency_limit": _HEAVY}
_TRYING = "Methods are being tried on this network, which takes some seconds."
_STRENGTH = "(s) => document.documentElement.style.setProperty('--afmi-strength', s / 100)"


def page(model: nn.Module, *, examples: Path | None = None) -> Blocks:
    """Return the page; see `afmi.app.build`."""
    import gradio as gr

    choices = Choices.of(model)
    offered = examples_of(choices.model, examples)
    with gr.Blocks(
        title="afmi: why did the network say that?",
        analytics_enabled=False,
        delete_cache=(_OFTEN, _OLD),
    ) as blocks:
        css = _text("page.css")
        gr.HTML(f"<style>{css}</style>{words.head_html(choices)}", apply_default_css=False)
        parts: dict[str, Any] = {"session": gr.State(Session())}
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                parts |= _photograph(offered)
            with gr.Column(scale=3, min_width=320):
                parts |= _questions(choices)
                with gr.Tabs():
                    with gr.Tab("Map"):
                        parts |= _map()
                    with gr.Tab("Top pixels"):
                        parts |= _top_pixels()
                    with gr.Tab("Side by side"):
                        parts |= _comparison()
        answer = Handlers(choices, offered, Path(parts["photo"].GRADIO_CACHE))
        _wire(parts, answer)
        # The page opens before the methods are tried.
        listed = ("method", "reference", "layer", "go", "methods", "both")
        blocks.load(answer.list_methods, None, _named(parts, *listed), **_QUIET)
    # What answers at once, such as a slider, has a line of its own and waits behind nothing long.
    blocks.queue(max_size=_WAITING, default_concurrency_limit=_LIGHT, api_open=False)
    return blocks


def _photograph(offered: list[Example]) -> dict[str, Any]:
    import gradio as gr

    photo = gr.Image(
        label="Photograph",
        sources=["upload", "webcam", "clipboard"],
        height=260,
        buttons=[],
        alt_text="The photograph that you chose",
        elem_id="photograph",
    )
    frame = gr.Slider(1, 2, 1, step=1, visible=False, label="Frame", elem_id="frame", buttons=[])
    predictions = gr.HTML(visible=False, elem_id="predictions", apply_default_css=False)
    gallery = gr.Gallery(
        [(one.thumbnail, one.title) for one in offered],
        label="Or take one of these",
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        buttons=[],
        interactive=False,
        visible=bool(offered),
        elem_id="examples",
    )
    gr.HTML(words.credits_html(offered), visible=bool(offered))
    with gr.Accordion("A video, or another kind of file", open=False):
        video = gr.HTML(
            html_template=words.video_html(), js_on_load=_text("video.js"), elem_id="video"
        )
        other = gr.UploadButton("Open a TIFF or .npy file", size="sm", elem_id="other")
    return {
        "photo": photo,
        "frame": frame,
        "gallery": gallery,
        "video": video,
        "other": other,
        "predictions": predictions,
    }


def _questions(choices: Choices) -> dict[str, Any]:
    import gradio as gr

    list_of = partial(gr.Dropdown, min_width=200)
    with gr.Row():
        of = list_of(
            choices.classes,
            value=None if choices.has_classes else 0,
            label="Explain" if choices.has_classes else "Explain the output",
            info="Type to search.",
            elem_id="of",
        )
        versus = list_of(
            [("– nothing –", NO_CLASS), *choices.classes],
            value=NO_CLASS,
            label="Rather than",
            info="Why the one and not the other?",
            visible=choices.has_classes,
            elem_id="versus",
        )
    with gr.Row():
        method = list_of(
            [],
            value=None,
            label="Method",
            info=_TRYING,
            interactive=False,
            elem_id="method",
        )
        reference = list_of(
            [("the method's own", ""), *REFERENCES],
            value="",
            label="Compared with",
            interactive=False,
            elem_id="reference",
        )
        layer = list_of(
            [("found automatically", ""), *choices.layers_in_words],
            value="",
            label="Layer",
            interactive=False,
            elem_id="layer",
        )
    with gr.Row():
        go = gr.Button("Explain", variant="primary", interactive=False, elem_id="explain")
        halt = gr.Button("Stop", elem_id="stop", min_width=90, scale=0)
    return {
        "of": of,
        "versus": versus,
        "method": method,
        "reference": reference,
        "layer": layer,
        "go": go,
        "halt": halt,
    }


def _map() -> dict[str, Any]:
    import gradio as gr

    strength = gr.Slider(
        0,
        100,
        round(100 * OPACITY),
        step=1,
        label="Strength of the map",
        info="In per cent; also of the maps side by side.",
        elem_id="strength",
        buttons=[],
    )
    shown = gr.HTML(words.waiting_html(), elem_id="map", min_height=160)
    # The browser alone does it, at once: the strength is how opaque the upper picture is.
    strength.input(None, strength, None, js=_STRENGTH)
    record = gr.Button("Save the record (zip)", interactive=False, elem_id="record")
    return {"shown": shown, "record": record, "record_file": gr.DownloadButton(visible=False)}


def _top_pixels() -> dict[str, Any]:
    import gradio as gr

    share = gr.Slider(
        1,
        100,
        10,
        step=1,
        label="Pixels kept",
        info="In per cent of the picture, from those that the map ranks first.",
        elem_id="share",
        buttons=[],
    )
    return {"share": share, "kept": gr.HTML(words.waiting_html(), elem_id="kept", min_height=160)}


def _comparison() -> dict[str, Any]:
    import gradio as gr

    methods = gr.Dropdown(
        [],
        multiselect=True,
        max_choices=work.MOST_METHODS,
        label="Methods",
        info=_TRYING,
        interactive=False,
        elem_id="methods",
    )
    both = gr.Button("Compare", interactive=False, elem_id="compare")
    table = gr.HTML("", elem_id="comparison")
    records = gr.Button("Save all records (zip)", interactive=False, elem_id="records")
    parts = {"methods": methods, "both": both, "table": table, "records": records}
    return {**parts, "records_file": gr.DownloadButton(visible=False)}


def _wire(parts: dict[str, Any], answer: Handlers) -> None:
    explained = [
        *_wire_arrivals(parts, answer),
        parts["go"].click(
            with_progress(answer.explain, len(_SETTINGS)),
            _named(parts, *_SETTINGS),
            _named(parts, "shown", "record"),
            **_HEAVY_WORK,
        ),
    ]
    kept = _named(parts, "session", "share"), parts["kept"]
    for event in explained:
        event.success(answer.keep, *kept, **_QUIET)
    wanted = _named(parts, "session", "of", "versus", "methods")
    compared = parts["both"].click(
        with_progress(answer.compare, len(wanted)),
        wanted,
        _named(parts, "table", "records"),
        **_HEAVY_WORK,
    )
    for name, save in (("record", answer.save), ("records", answer.save_comparison)):
        file = parts[f"{name}_file"]
        written = parts[name].click(_saving(save, file), parts["session"], file, **_QUIET)
        written.success(None, file, None, js=_text("download.js"))
    parts["share"].input(answer.keep, *kept, trigger_mode="always_last", **_QUIET)
    chosen = _named(parts, "reference", "layer", "go")
    parts["method"].input(answer.choose_method, parts["method"], chosen, **_QUIET)
    parts["methods"].input(answer.choose_methods, parts["methods"], parts["both"], **_QUIET)
    running = [*explained, compared]
    parts["halt"].click(answer.stop, parts["session"], None, cancels=running, **_QUIET)


def _wire_arrivals(parts: dict[str, Any], answer: Handlers) -> list[Any]:
    """Let photographs arrive, and be explained; return the events of the latter."""
    import gradio as gr

    session = parts["session"]
    news = _named(
        parts,
        *("photo", "predictions", "frame", "of", "versus"),
        *("shown", "record", "kept", "table", "records"),
    )
    example = with_event(answer.take_example, gr.SelectData)
    frame = with_event(answer.take_frame, gr.EventData)
    turning: dict[str, Any] = {**_ARRIVAL, "trigger_mode": "always_last"}
    arrivals = [
        parts["photo"].input(answer.take, [session, parts["photo"]], news, **_UPLOAD),
        parts["other"].upload(answer.take, [session, parts["other"]], news, **_UPLOAD),
        parts["frame"].input(answer.turn, [session, parts["frame"]], news, **turning),
        parts["gallery"].select(example, session, news, **_ARRIVAL),
        parts["video"].submit(frame, session, news, **_ARRIVAL),
    ]
    explain = with_progress(answer.explain_first, len(_SETTINGS))
    settings, result = _named(parts, *_SETTINGS), _named(parts, "shown", "record")
    return [one.success(explain, settings, result, **_HEAVY_WORK) for one in arrivals]


def _named(parts: dict[str, Any], *names: str) -> list[Any]:
    return [parts[name] for name in names]


def _saving(save: Any, file: Any) -> Any:
    """Return what writes a record for the browser to save."""

    def saved(session: Session) -> str:
        path = str(save(session, Path(file.GRADIO_CACHE)))
        file.temp_files.add(path)  # which are deleted after a while
        return path

    return saved


def _text(name: str) -> str:
    return resources.files("afmi.app").joinpath(name).read_text("utf-8")
