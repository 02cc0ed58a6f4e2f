"""Music by hand in a notebook: what the widgets ask for is what is made."""

import pytest

from Libraries.Evaluation.Widgets import music_widgets
from Libraries.Runs import DiffusionRun
from Libraries.Runs.MusicRequest import MusicRequest
from Libraries.Runs.Run import RELEASED


@pytest.fixture(scope="module")
def model():
    return DiffusionRun.load(RELEASED / "diffusion-cpu")


@pytest.fixture
def page(model):
    *rows, button, result = music_widgets(model).children
    return {widget.description: widget for row in rows for widget in row.children}, button, result


def test_widgets_begin_as_the_run_is_set(model, page):
    asked, settings = page[0], model.run.settings
    assert asked["steps"].value == settings.sampler.num_inference_steps
    assert asked["guidance"].value == settings.guidance.scale
    assert "choir" in dict(asked["label"].options) and asked["label"].value is None
    assert asked["seconds"].value == pytest.approx(2.032)


def test_the_button_makes_what_is_asked_for(model, page, monkeypatch):
    (asked, button, result), requests, make = page, [], MusicRequest.make
    monkeypatch.setattr(
        MusicRequest, "make", lambda request, model: requests.append(request) or make(request, model)
    )
    for name, value in {"label": "choir", "seed": 3, "seconds": 1.0, "steps": 2, "guidance": 1.0}.items():
        asked[name].value = value
    button.click()
    assert requests == [MusicRequest.of(model.run.folder, 3, 1.0, "choir", steps=2, guidance=1.0)]
    player, picture, line = result.children
    assert "<audio" in player.value and bytes(picture.value[:4]) == b"\x89PNG"
    assert "--label choir" in line.value and "--seed 3" in line.value


def test_what_does_not_fit_is_said_in_a_sentence(page):
    asked, button, result = page
    asked["seconds"].value = 0.0
    button.click()
    assert "are shorter than a frame" in result.children[0].value
