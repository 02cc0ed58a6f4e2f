"""A notebook in the real JupyterLab, in a real browser, run as a person runs it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest
from test_netron import BROWSER, DRIVER, open_browser
from test_notebooks import SCRIPTS, code_cells

NOTEBOOK = "Preprocessing.ipynb"  # needs no other; has progress bars, pictures and sound
PATIENCE = 900  # s; the machine may be busy with other tests
WHOLE_PAGE = {"windowingMode": "none"}  # else cells that are out of sight are not in the page


@pytest.fixture
def address(tmp_path):
    """JupyterLab for this machine alone, in a folder with the notebook, which knows nothing of the user's."""
    shutil.copy(SCRIPTS / NOTEBOOK, tmp_path)
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(WHOLE_PAGE))
    environment = {"CONF_PRESET": "SMOKE", "CONF_ROOT": str(tmp_path), "PYTHONPATH": str(SCRIPTS)}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "JUPYTER_NO_CONFIG": "1"}
    jupyters = {
        f"JUPYTER_{name}_DIR": str(tmp_path / "jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")
    }
    # short bars too: these tests write to a log, where `Conf.py` leaves them out
    environment |= jupyters | {"TQDM_DELAY": "0", "TQDM_MININTERVAL": "0.1"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}", "--ServerApp.ip=127.0.0.1"]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def browser(tmp_path):
    driver = open_browser(tmp_path / "profile", "window-size=1400,2000")
    yield driver
    driver.quit()


def wait(seen):
    """Look until something is seen; return it."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := seen():
                return found
        except (WebDriverException, OSError):  # not there yet
            pass
        time.sleep(0.2)
    raise AssertionError(f"not seen in {PATIENCE} s")


@pytest.mark.slow
@pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver is installed")
@pytest.mark.skipif(not find_spec("jupyterlab"), reason="no JupyterLab is installed")
def test_a_person_runs_all_cells_and_sees_progress_pictures_and_sound_and_no_error(
    address, browser, tmp_path
):
    def all_of(css):
        return browser.find_elements("css selector", css)

    def click(css, text):
        wait(lambda: [each for each in all_of(css) if each.text.strip() == text])[0].click()

    wait(lambda: urllib.request.urlopen(f"{address}/api/status").status == 200)
    browser.get(f"{address}/lab/tree/{NOTEBOOK}")
    wait(lambda: [bar for bar in all_of(".jp-NotebookPanel-toolbar") if "Python 3" in bar.text])
    click(".lm-MenuBar-itemLabel", "Run")
    click(".lm-Menu-itemLabel", "Run All Cells")
    cells = code_cells(tmp_path / NOTEBOOK)
    prompts = ".jp-CodeCell .jp-InputPrompt"
    errors = "[data-mime-type='application/vnd.jupyter.error']"

    def ended():
        numbers = [prompt.text.strip("[]: ") for prompt in all_of(prompts)]
        return all_of(errors) or (len(numbers) == len(cells) and all(number.isdigit() for number in numbers))

    wait(ended)
    browser.save_screenshot(str(tmp_path / "above.png"))
    assert not all_of(errors), [error.text for error in all_of(errors)]
    bars = all_of(".jp-OutputArea .progress-bar")
    assert bars and all("progress-bar-success" in bar.get_attribute("class") for bar in bars)
    widths = "return [...document.querySelectorAll('.jp-OutputArea img')].map(image => image.naturalWidth)"
    drawn = sum(cell["source"][-1].startswith(("plot_", "figure")) for cell in cells)
    assert len(pictures := browser.execute_script(widths)) == drawn and min(pictures) > 300
    lengths = "return [...document.querySelectorAll('.jp-OutputArea audio')].map(audio => audio.duration)"
    assert len(sounds := wait(lambda: browser.execute_script(lengths))) > 0 and min(sounds) > 1
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", bars[-1])
    browser.save_screenshot(str(tmp_path / "below.png"))
