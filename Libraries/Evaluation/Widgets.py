"""Music by hand in a notebook: label, seed, length, steps and guidance, with sound and picture at once."""

import html
import io

from IPython.display import Audio
from ipywidgets import HTML, Button, Dropdown, FloatSlider, FloatText, HBox, Image, IntSlider, IntText, VBox

from Libraries.Plots.SpectrogramPlots import plot_waveform_spectrograms
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.MusicRequest import MusicRequest

MOST_STEPS, MOST_GUIDANCE = 100, 8.0


def music_widgets(model: DiffusionRun) -> VBox:
    """Return widgets that make a piece with a run, play it, draw it and show the line that makes it again.

    They begin as the run's own settings. Nothing is made before the button is pressed; what does not fit is
    said in a sentence.
    """
    settings, config = model.run.settings, model.spectrogram.config
    classes = model.run.conf["classes"] if model.network.config.num_classes else []
    steps, seconds = settings.sampler.num_inference_steps, config.kept_samples / config.sample_rate
    asked = {
        "label": Dropdown(options=[("no label", None), *((name, name) for name in classes)]),
        "seed": IntText(0),
        "seconds": FloatText(seconds),
        "steps": IntSlider(steps, 1, max(MOST_STEPS, steps)),
        "guidance": FloatSlider(settings.guidance.scale, min=0.0, max=MOST_GUIDANCE, step=0.1),
    }
    for name, widget in asked.items():
        widget.description = name
    button, result = Button(description="Make"), VBox()

    def make(_: Button) -> None:
        values = {name: widget.value for name, widget in asked.items()}
        try:
            result.children = made(model, MusicRequest.of(model.run.folder, **values))
        except ValueError as error:
            result.children = (HTML(html.escape(str(error))),)

    button.on_click(make)
    widgets = list(asked.values())
    return VBox([HBox(widgets[:3]), HBox(widgets[3:]), button, result])


def made(model: DiffusionRun, request: MusicRequest) -> tuple[HTML, Image, HTML]:
    """Return what is shown of a piece: a player, its spectrogram, and the line that makes it again."""
    music, rate = request.make(model), model.spectrogram.config.sample_rate
    title, picture = f"{request.name}, by {model.run.name}", io.BytesIO()
    figure = plot_waveform_spectrograms([music], [title], rate, "", columns=1, width=10)
    figure.savefig(picture, format="png")
    line = HTML(f"<pre>{html.escape(request.shell_line())}</pre>")
    return HTML(Audio(music.numpy(), rate=rate)._repr_html_()), Image(value=picture.getvalue()), line
