"""A page to play on, in your browser, for this machine alone: make music, change a file, restore one, look.

    python MainScripts/app.py            # http://127.0.0.1:7860
    python MainScripts/app.py --port 8000

It needs Gradio: pip install "gradio>=6". Nothing leaves this machine and nothing is fetched. What the page
makes lies in a temporary folder that goes when the page does, so download what you want to keep.
"""

import argparse
import base64
import functools
import html
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from Conf import conf
from Libraries.Evaluation.Workbench import ANEW, CHANGES, FORMATS, LOOP, MOST_SECONDS, Piece, Workbench
from Libraries.Plots import chosen_stretch
from Libraries.Runs import MusicRequest, Run, Stretch
from Libraries.Sampling import SAMPLERS, Stopped, Stops
from Libraries.Sound import AudioError
from Libraries.Training import CheckpointError
from Libraries.Utils import printable

TEMPORARY = tempfile.TemporaryDirectory(prefix="ma-ddpm-page-")
os.environ |= {"GRADIO_TEMP_DIR": TEMPORARY.name, "GRADIO_ANALYTICS_ENABLED": "False"}  # read on import
try:
    import gradio as gr
except ImportError:
    sys.exit('the page needs Gradio: pip install "gradio>=6"')

NO_LABEL = "no label"
LARGEST_FILE = "200mb"
BENCH, STOPS = Workbench(conf.models_dir, Path(TEMPORARY.name)), Stops()
DROP = {"type": "filepath", "label": "Drop a file, or record", "buttons": []}
PLAYER = {"interactive": False, "buttons": []}  # downloads are below it, and nothing is shared
FRAME = {"interactive": False, "buttons": ["fullscreen"], "show_label": False}
PROGRESS = gr.Progress(track_tqdm=True)
PICTURE = '<div class="music"><img src="${value}" draggable="false"><div class="box"></div></div>'
PICTURE_CSS = """
.music { position: relative; touch-action: none; cursor: crosshair; user-select: none }
.music img { width: 100% } .music img[src=""] { display: none }
.box { position: absolute; border: 2px solid white; background: #fff5; pointer-events: none; display: none }
"""
DRAG = """
let from = null;
const at = e => { const r = element.querySelector('img').getBoundingClientRect();
                  return [(e.clientX - r.left) / r.width, (e.clientY - r.top) / r.height]; };
const draw = to => Object.assign(element.querySelector('.box').style, { display: 'block',
    left: 100 * Math.min(from[0], to[0]) + '%', width: 100 * Math.abs(from[0] - to[0]) + '%',
    top: 100 * Math.min(from[1], to[1]) + '%', height: 100 * Math.abs(from[1] - to[1]) + '%' });
element.addEventListener('pointerdown', e => { if (e.target.closest('.music')) from = at(e); });
window.addEventListener('pointermove', e => { if (from) draw(at(e)); });
window.addEventListener('pointerup', e => { if (!from) return;
    const to = at(e), box = [...from, ...to]; from = null;
    if (Math.abs(box[0] - box[2]) > 0.005) trigger('select', { box: box }); });
"""


def make(*asked, callback=None) -> tuple:
    """Make music; return what plays, its picture, the files, the lines that make it again, and what it is."""
    request = request_of(*asked)
    piece = BENCH.make(request, callback)
    lines = request.shell_line(), request.python_lines()
    return *shown(piece), *lines, (request, piece.files[0])


def show(run: str, file: str | None) -> tuple:
    """Show a file that was dropped; return its picture, length and rate, and a stretch to begin with."""
    if file is None:
        return "", 0.0, 0, None, None, None, None
    found = BENCH.open(BENCH.runs()[run], Path(file))
    url = f"data:image/png;base64,{base64.b64encode(found.picture.read_bytes()).decode()}"
    stretch = (round(value, 3) for value in vars(found.stretch).values())
    return url, found.seconds, found.sample_rate, *stretch


def choose(seconds: float, sample_rate: int, event: gr.EventData) -> tuple[float, ...]:
    """Return the stretch under the box that was dragged over the picture: from and to in s, then in Hz."""
    return tuple(round(value, 3) for value in chosen_stretch(event.box, seconds, sample_rate))


def change(*values, callback=None) -> tuple:
    """Change a file; return both versions to play, their picture and the files."""
    *asked, file, how, first, end, low, high, strength = values
    stretch = Stretch(first or 0.0, end, low or 0.0, high)
    piece = BENCH.change(request_of(*asked), given(file), how, stretch, strength, callback)
    after, *others = shown(piece)
    return str(piece.before), gr.Audio(after, loop=how == LOOP), *others


def restore(run: str | None, file: str | None, seed: int, cut: float | None, callback=None) -> tuple:
    """Restore the upper band of a file; return both versions to play, their picture and the files."""
    piece = BENCH.restore(run, given(file), seed, cut or None, callback)
    return str(piece.before), *shown(piece)


def look(made: tuple | None, callback=None) -> tuple:
    """Look at what was made: a film of its seed, its table, and its nearest training clip to see and hear."""
    if made is None:
        raise ValueError("nothing was made yet: make music first, on the tab Make")
    found = BENCH.look(*made, callback)
    nearest = shown(found.nearest)[1::-1] if found.nearest else (None, None)
    return str(found.film), found.table, found.remark, *nearest


def request_of(run, label, seed, sampler, steps, guidance, seconds) -> MusicRequest:
    """Return what the fields of the page ask for; an empty one is as the run has it."""
    label = None if label == NO_LABEL else label
    return MusicRequest.of(BENCH.runs()[run], seed or 0, seconds, label, sampler, steps, guidance)


def fields_of(run: str) -> tuple:
    """Return what the fields offer for a run, with the values of its own settings."""
    settings = Run(BENCH.runs()[run]).settings
    guided = gr.update(value=settings.guidance.scale, interactive=settings.guidance.method != "none")
    seconds = settings.spectrogram.kept_samples / settings.spectrogram.sample_rate
    sampler = settings.sampler.name, settings.sampler.num_inference_steps
    return gr.update(choices=labels_of(run), value=NO_LABEL), *sampler, guided, round(seconds, 3)


def labels_of(run: str) -> list[str]:
    """Return what may be chosen as a label."""
    return [NO_LABEL, *BENCH.labels(BENCH.runs()[run])]


def shown(piece: Piece) -> tuple[str, ...]:
    """Return a piece as its player, its picture and its downloads take it."""
    return str(piece.files[0]), str(piece.picture), *map(str, piece.files)


def given(file: str | None) -> Path:
    """Return the file that was dropped; a ValueError says that there is none."""
    if file is None:
        raise ValueError("there is no file yet: drop one, or record")
    return Path(file)


def told(work: Callable) -> Callable:
    """Return a function that says on the page, in a sentence, what is wrong."""

    @functools.wraps(work)
    def answer(*values):
        try:
            return work(*values)
        except Stopped:  # the page was told when the button was pressed
            return gr.skip()
        except AudioError as error:  # without the folder in which the page keeps the file
            sentence = f"{printable(error.path.name)} {error.reason}"
        except (CheckpointError, ValueError, OSError) as error:
            sentence = str(error)
        raise gr.Error(html.escape(sentence), duration=20, print_exception=False)

    return answer


def long_work(work: Callable) -> Callable:
    """Return a function that shows its progress on the page and can be stopped there, and is `told`."""

    def stoppable(request: gr.Request, progress=PROGRESS, *values):
        with STOPS.stoppable(request.session_hash) as callback:
            return work(*values, callback=callback)

    stoppable.__name__ = work.__name__
    return told(stoppable)


def stop(request: gr.Request) -> None:
    """Stop what goes on for this page, and for no other; Gradio takes from its queue what still waits."""
    leave(request)
    gr.Info("Stopped.")


def leave(request: gr.Request) -> None:
    """Stop what goes on for a page that is closed."""
    STOPS.stop(request.session_hash)


def build_page() -> gr.Blocks:
    """Lay out the page: on the left how the model samples, on the right what it does."""
    runs, upsamplers = list(BENCH.runs()), list(BENCH.runs("upsampler"))
    with gr.Blocks(title="MA_DDPM", delete_cache=(3600, 24 * 3600)) as page:
        made, length, rate = gr.State(), gr.State(0.0), gr.State(0)
        with gr.Sidebar(width=280):
            gr.Markdown("# MA_DDPM")
            run = gr.Dropdown(runs, value=runs[0], label="Model")
            label = gr.Dropdown(labels_of(runs[0]), label="Label")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            sampler = gr.Dropdown(list(SAMPLERS), label="Sampler")
            steps = gr.Number(label="Steps", precision=0, minimum=1)
            guidance = gr.Slider(0, 8, step=0.1, label="Guidance (1: none)")
            stopping = gr.Button("Stop", variant="stop")
        asked = [run, label, seed, sampler, steps, guidance]
        with gr.Tab("Make"):
            with gr.Row(equal_height=True):
                seconds = gr.Number(label="Length in s", minimum=0, maximum=MOST_SECONDS)
                making = gr.Button("Make", variant="primary")
            heard = gr.Audio(label="Music", elem_id="made", **PLAYER)
            seen, files = gr.Image(label="Spectrogram", **FRAME), downloads()
            options = {"interactive": False, "lines": 1, "wrap_lines": True}
            again = gr.Code(label="To make it again, in a shell", language="shell", **options)
            lines = gr.Code(label="To make it again, in Python", language="python", **options)
            outputs = [heard, seen, *files, again, lines, made]
            works = [making.click(long_work(make), [*asked, seconds], outputs, concurrency_id="model")]
        with gr.Tab("Change"):
            dropped = gr.Audio(elem_id="dropped", **DROP)
            picture = gr.HTML("", html_template=PICTURE, css_template=PICTURE_CSS, js_on_load=DRAG)
            gr.Markdown("Drag over the picture: a stretch of time and a band. Or give them here:")
            with gr.Row():
                stretch = [
                    gr.Number(label=name, minimum=0) for name in ("from s", "to s", "from Hz", "to Hz")
                ]
            with gr.Row():
                how = gr.Radio(CHANGES, value=ANEW, label="It is")
                strength = gr.Slider(0, 1, 0.5, label="Strength of a variation")
                more = gr.Number(8, label="Length of the continuation or loop in s", minimum=0)
            changing = gr.Button("Change", variant="primary")
            works += [work_on_file(changing, change, [*asked, more, dropped, how, *stretch, strength])]
        with gr.Tab("Restore"):
            gr.Markdown(
                "A file that lost its upper band, as in a bad recording or a small MP3, gets a new one."
            )
            upsampler = gr.Dropdown(upsamplers, label="Upsampler", value=next(iter(upsamplers), None))
            lost = gr.Audio(elem_id="lost", **DROP)
            cut = gr.Number(label="Complete up to Hz (0: it is found)", minimum=0)
            restoring = gr.Button("Restore", variant="primary")
            works += [work_on_file(restoring, restore, [upsampler, lost, seed, cut])]
        with gr.Tab("Look"):
            looking = gr.Button("Look at what was made", variant="primary")
            film = gr.Image(label="From noise to music", **FRAME)
            table, remark = gr.Markdown(), gr.Markdown()
            near = gr.Image(label="The nearest training clip", **FRAME)
            near_heard = gr.Audio(label="The nearest training clip", **PLAYER)
            outputs = [film, table, remark, near, near_heard]
            works += [looking.click(long_work(look), made, outputs, concurrency_id="model")]
        outputs = [page.blocks[number] for work in works for number in work["outputs"]]
        stopped = stopping.click(stop, None, None, concurrency_limit=None, cancels=works)
        unmarked = {"show_progress": "hidden", "api_visibility": "private"}
        stopped.then(gr.skip, None, outputs, **unmarked)  # Gradio marks what left its queue as an error
        page.unload(leave)
        fields, opened = [label, sampler, steps, guidance, seconds], [picture, length, rate, *stretch]
        quietly = {"show_progress": "hidden"}
        page.load(lambda: gr.update(choices=list(BENCH.runs())), None, run, **quietly)
        gr.on([page.load, run.change], told(fields_of), run, fields, **quietly)
        gr.on([dropped.change, run.change], told(show), [run, dropped], opened, **quietly)
        picture.select(choose, [length, rate], stretch, **quietly)
    return page


def work_on_file(button: gr.Button, work: Callable, inputs: list) -> gr.events.Dependency:
    """Lay out a file before and after, and let a button do the work; return that event."""
    with gr.Row():
        before = gr.Audio(label="Before", **PLAYER)
        after = gr.Audio(label="After", elem_id=f"{work.__name__}d", **PLAYER)
    outputs = [before, after, gr.Image(label="Before and after", **FRAME), *downloads()]
    return button.click(long_work(work), inputs, outputs, concurrency_id="model")


def downloads() -> list[gr.DownloadButton]:
    """Lay out a row of buttons, one per format."""
    with gr.Row():
        return [gr.DownloadButton(f"Download {suffix[1:]}", size="sm") for suffix in FORMATS]


def main() -> None:
    """Serve the page to this machine until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--browser", action="store_true", help="open it in a browser")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder goes
    serve(options.port, inbrowser=options.browser)


def serve(port: int | None, **options) -> str:
    """Serve the page on 127.0.0.1; return its address."""
    return (
        build_page()
        .queue(default_concurrency_limit=2)
        .launch(
            server_name="127.0.0.1", server_port=port, share=False, max_file_size=LARGEST_FILE,
            ssr_mode=False, quiet=True, enable_monitoring=False, run_history=False, footer_links=[],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]), **options,
        )[1]
    )  # fmt: skip


if __name__ == "__main__":
    main()
