"""The page, as a program asks it and as a person in a browser does."""

import json
import re
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_netron import BROWSER, DRIVER, FLAGS

pytest.importorskip("gradio", reason='the page needs Gradio: pip install "gradio>=6"')

import app
import gradio
import gradio_client
from gradio_client.utils import Status

from Libraries.Evaluation.Workbench import ANEW, Workbench
from Libraries.Runs.MusicRequest import MusicRequest
from Libraries.Runs.Run import RELEASED

MODEL = RELEASED / "diffusion-cpu"
QUICK = ("ddim", 2, 1.0)  # sampler, steps, guidance
PATIENCE = 240  # s; the machine may be busy with other tests


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page with the released model alone, for files of at most a megabyte."""
    root = tmp_path_factory.mktemp("page")
    (root / "made").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "BENCH", Workbench(root / "Models", root / "made"))
        patch.setattr(app, "LARGEST_FILE", "1mb")
        yield app.serve(None, prevent_thread_lock=True)
        gradio.close_all()


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """Four seconds of chords, mono at the model's rate."""
    path, seconds = tmp_path_factory.mktemp("song") / "song.wav", np.arange(4 * 16_000) / 16_000
    chords = sum(np.sin(2 * np.pi * pitch * seconds) for pitch in (220, 277, 330, 440, 1760, 3520))
    soundfile.write(path, 0.1 * chords * np.exp(-2 * (seconds % 0.5)), 16_000)
    return path


def client_of(address):
    return gradio_client.Client(address, verbose=False, httpx_kwargs={"timeout": PATIENCE})  # 5 s without


@pytest.fixture
def busy(address, monkeypatch):
    """Two other pages' requests, which work until `go` is set; `started` has the seeds whose work began."""
    started, go, make = [], threading.Event(), app.BENCH.make

    def make_when_told(request, callback=None):
        started.append(request.seed)
        assert go.wait(PATIENCE)
        return make(request, callback)

    monkeypatch.setattr(app.BENCH, "make", make_when_told)
    jobs = [submit(address, seed) for seed in (100, 101)]
    wait_until(lambda: len(started) == 2)
    yield types.SimpleNamespace(jobs=jobs, started=started, go=go)
    go.set()


def submit(address, seed):
    """Ask for a second of music as a page of its own would; return the request, which goes on."""
    return client_of(address).submit(MODEL.name, "choir", seed, *QUICK, 1.0, api_name="/make")


def wait_until(seen):
    end = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.05)


def sound(path):
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


@pytest.mark.slow
def test_ten_requests_at_once_wait_for_each_other_and_none_mixes(address, tmp_path):
    def ask(seed):
        return client_of(address).predict(MODEL.name, "choir", seed, *QUICK, 1.0, api_name="/make")

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    bench = Workbench(tmp_path, tmp_path)
    for seed, (heard, picture, *files, shell, python) in enumerate(answers):
        own = bench.make(MusicRequest.of(MODEL, seed, 1.0, "choir", *QUICK))
        assert np.array_equal(sound(heard), sound(own.files[0])) and f"--seed {seed} " in shell
        assert f"seed={seed}" in python and [Path(file).suffix for file in files] == [".wav", ".flac", ".mp3"]
        assert Path(picture).read_bytes() == own.picture.read_bytes()


def test_a_request_that_waits_is_cancelled_and_the_others_go_on(address, busy):
    waiting = [submit(address, seed) for seed in (1, 2, 3)]
    wait_until(lambda: all(job.status().code is Status.IN_QUEUE for job in waiting))
    waiting[1].cancel()
    busy.go.set()
    for job in (*busy.jobs, waiting[0], waiting[2]):
        assert len(job.result(PATIENCE)) == 7
    assert sorted(busy.started) == [1, 3, 100, 101]


def test_the_stop_button_cancels_all_long_work_of_its_page():
    events = {event["id"]: event for event in app.build_page().config["dependencies"]}
    cancelled = [events[number]["api_name"] for event in events.values() for number in event["cancels"]]
    assert cancelled == ["make", "change", "restore", "look"]


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_told_in_the_sentence_of_everywhere(address, tmp_path):
    path = tmp_path / "zip.wav"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "no music")
    (tmp_path / "empty.wav").touch()
    ask, model = client_of(address), (MODEL.name, "no label", 0, *QUICK, 8)
    sentences = {
        "zip.wav": "zip.wav is not audio, or its header is damaged or cut off",
        "empty.wav": "empty.wav is empty: 0 bytes",
    }
    for name, sentence in sentences.items():
        dropped = gradio_client.handle_file(str(tmp_path / name))
        with pytest.raises(gradio_client.exceptions.AppError, match=f"^{re.escape(sentence)}$"):
            ask.predict(*model, dropped, ANEW, 0, 1, 0, 8_000, 0.5, api_name="/change")
    with pytest.raises(gradio_client.exceptions.AppError, match="train a model first"):
        ask.predict(None, gradio_client.handle_file(str(path)), 0, None, api_name="/restore")
    with pytest.raises(gradio_client.exceptions.AppError, match="there is no file yet"):
        ask.predict(*model, None, ANEW, 0, 1, 0, 8_000, 0.5, api_name="/change")


def test_a_file_that_is_too_large_is_refused_and_the_page_goes_on(address):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.wav"\r\n\r\n'
    body = head + bytes(3_000_000) + b"\r\n--x--\r\n"
    content = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{address}gradio_api/upload", body, content)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413 and "exceeded maximum allowed size" in refused.value.read().decode()
    assert urllib.request.urlopen(address).status == 200


def test_the_page_is_for_this_machine_and_tells_nobody(address):
    assert re.match(r"http://127\.0\.0\.1:\d+/", address)
    page = app.build_page()
    assert not page.analytics_enabled and not page.share
    config = urllib.request.urlopen(f"{address}config").read().decode()
    assert "googleapis" not in config and "huggingface.co" not in config


def test_a_name_that_is_html_is_shown_as_text():
    """A file's name reaches the page as HTML would."""

    @app.told
    def work():
        raise ValueError("<img src=x> is no music")

    with pytest.raises(gradio.Error) as told:
        work()
    assert told.value.message == "&lt;img src=x&gt; is no music"


@pytest.fixture
def person(address, tmp_path):
    """A person at the page in a browser, with what they do."""
    if not (BROWSER and DRIVER):
        pytest.skip("no Chromium with its driver is installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, "window-size=1400,1400", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    (tmp_path / "downloads").mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get(address)
    person = Person(driver)
    person.wait(lambda: person.field("Steps").get_attribute("value") == "20")
    yield person
    driver.quit()


class Person:
    """What a person does and sees."""

    def __init__(self, driver):
        self.driver = driver

    def wait(self, seen):
        """Look until something is seen; return it."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if found := seen():
                    return found
            except (WebDriverException, StopIteration):  # not there yet
                pass
            time.sleep(0.05)
        raise AssertionError(f"not seen in {PATIENCE} s:\n{self.text()}")

    def all(self, css):
        return [
            element for element in self.driver.find_elements("css selector", css) if element.is_displayed()
        ]

    def text(self):
        return self.driver.find_element("tag name", "body").text

    def told(self):
        return " ".join(element.text for element in self.all("[data-testid=toast-body]"))

    def click(self, css, text):
        self.wait(lambda: next(one for one in self.all(css) if one.text.strip() == text).click() or True)

    def field(self, label):
        return self.driver.find_element("xpath", f"//label[contains(., '{label}')]//input")

    def write(self, label, value):
        self.type(self.field(label), value)

    def type(self, field, value):
        from selenium.webdriver.common.keys import Keys

        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def ask_for_little(self):
        """Two steps without guidance: a busy machine makes that soon."""
        self.write("Steps", 2)
        self.type(
            self.driver.find_element("css selector", "input[aria-label^='number input for Guidance']"), 1
        )

    def drop(self, place, path):
        found = self.wait(lambda: self.driver.find_element("css selector", f"{place} input[type=file]"))
        found.send_keys(str(path))

    def clear(self, place):
        """Clear a file, if there is one."""
        for button in self.all(f"{place} button[aria-label=Clear]"):
            button.click()

    def close_messages(self):
        self.wait(lambda: [each.click() for each in self.all("[data-testid=toast-close]")] == [])

    def drag(self, css, start, end):
        """Drag over a picture, from and to fractions of its width and height."""
        from selenium.webdriver import ActionChains

        picture = self.driver.find_element("css selector", css)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        width, height = picture.size["width"], picture.size["height"]
        places = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in (start, end)]
        hand = ActionChains(self.driver).move_to_element_with_offset(picture, *places[0]).click_and_hold()
        hand.move_to_element_with_offset(picture, *places[1]).release().perform()

    def player(self, place, what):
        """What the audio element of a player says of itself, None while there is none."""
        return self.driver.execute_script(
            f"for (const part of document.querySelectorAll('{place} *')) {{"
            "  const audio = part.shadowRoot && part.shadowRoot.querySelector('audio');"
            f"  if (audio && audio.duration) return audio.{what}; }}"
        )

    def download(self, name, folder):
        """Click on a button for a format; return what the browser wrote."""
        self.click("button", f"Download {name}")
        path = self.wait(lambda: list(folder.glob(f"*.{name}")))[0]
        self.wait(lambda: not list(folder.glob("*.crdownload")))
        return sound(path)

    def hosts(self):
        """The hosts that the page has asked for anything."""
        messages = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        urls = [urllib.parse.urlparse(each["request"]["url"]) for each in sent]
        return {url.hostname for url in urls if url.scheme in ("http", "https", "ws", "wss")}


@pytest.mark.slow
def test_a_person_makes_a_clip_and_hears_it(person, tmp_path):
    person.ask_for_little()
    person.write("Length in s", 12)
    person.click("button.primary", "Make")
    person.wait(lambda: re.search(r"sampling - \d+", person.text()))  # progress
    person.wait(lambda: person.player("#made", "duration"))
    assert person.player("#made", "duration") == pytest.approx(12, abs=0.01)
    person.click("#made button[aria-label=Play]", "")
    person.wait(lambda: person.player("#made", "currentTime") > 0.2)
    assert "MainScripts/generate.py -o music-0.flac --run diffusion-cpu" in person.text()
    assert "request = MusicRequest.of(" in person.text()
    waveform = person.download("wav", tmp_path / "downloads")
    assert len(waveform) == 12 * 16_000 and 0.01 < np.sqrt((waveform**2).mean()) < 0.5
    assert person.hosts() == {"127.0.0.1"}


@pytest.mark.slow
def test_a_person_drags_over_a_stretch_and_it_alone_is_made_anew(person, song, tmp_path):
    person.ask_for_little()
    person.click("button[role=tab]", "Change")
    person.drop("#dropped", song)
    person.wait(lambda: person.field("to Hz").get_attribute("value") == "8000")
    person.drag(".music img", (0.3, 0.02), (0.4, 0.95))
    person.wait(lambda: 0.8 < float(person.field("from s").get_attribute("value")) < 1.1)
    first, end = (float(person.field(name).get_attribute("value")) for name in ("from s", "to s"))
    assert end - first == pytest.approx(4 * 0.1 / 0.9, abs=0.05)
    person.click("button.primary", "Change")
    person.wait(lambda: person.player("#changed", "duration"))
    before, after = sound(song), person.download("wav", tmp_path / "downloads")
    start, stop = round(first * 16_000), round(end * 16_000)
    assert len(after) == len(before)
    unchanged = np.abs(after - before).max(1) < 1e-4  # both are rounded to 16 bits
    assert unchanged[:start].all() and unchanged[stop:].all() and not unchanged[start:stop].all()
    assert np.sqrt(((after - before)[start:stop] ** 2).mean()) > 0.01


@pytest.mark.slow
def test_a_person_reads_what_is_wrong_with_a_file_and_goes_on(person, song, tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "page.wav").write_text("<html>not found</html>")
    with open(tmp_path / "big.wav", "wb") as file:
        file.truncate(2_000_000_000)
    person.click("button[role=tab]", "Change")
    for name, sentence in {
        "empty.wav": "empty.wav is empty: 0 bytes",
        "page.wav": "page.wav is not audio, or its header is damaged or cut off",
        "big.wav": "exceed the maximum allowed size of 1.0 Mb",
    }.items():
        person.drop("#dropped", tmp_path / name)
        person.wait(lambda sentence=sentence: sentence in person.told())
        person.close_messages()
        person.clear("#dropped")
    person.drop("#dropped", song)
    person.wait(lambda: person.field("to Hz").get_attribute("value") == "8000")


@pytest.mark.slow
def test_a_person_stops_what_takes_too_long(person):
    person.write("Length in s", 600)
    person.click("button.primary", "Make")
    person.wait(lambda: re.search(r"sampling - [1-9]", person.text()))
    person.click("button", "Stop")
    person.wait(lambda: "Stopped." in person.told())
    person.ask_for_little()
    person.write("Length in s", 1)
    person.click("button.primary", "Make")
    person.wait(lambda: person.player("#made", "duration"))
    assert person.player("#made", "duration") == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_a_person_stops_what_waits_for_others(busy, person):
    person.ask_for_little()
    person.write("Length in s", 1)
    person.click("button.primary", "Make")
    person.wait(lambda: "queue:" in person.text())
    person.click("button", "Stop")
    person.wait(lambda: "Stopped." in person.told() and not re.search("queue:|Error", person.text()))
    busy.go.set()
    assert all(job.result(PATIENCE) for job in busy.jobs) and sorted(busy.started) == [100, 101]
    person.click("button.primary", "Make")
    person.wait(lambda: person.player("#made", "duration"))
    assert busy.started[2:] == [0]


@pytest.mark.slow
def test_a_person_looks_at_what_was_made(person):
    person.ask_for_little()
    person.click("button[role=tab]", "Look")
    person.click("button.primary", "Look at what was made")
    person.wait(lambda: "nothing was made yet" in person.told())
    person.close_messages()
    person.click("button[role=tab]", "Make")
    person.click("button.primary", "Make")
    person.wait(lambda: person.player("#made", "duration"))
    person.click("button[role=tab]", "Look")
    person.click("button.primary", "Look at what was made")
    person.wait(lambda: "No real clips to compare with" in person.text())
    assert "note steadiness" in person.text()
    widths = "return [...document.querySelectorAll('img[src$=gif]')].map(image => image.naturalWidth)"
    assert person.wait(lambda: person.driver.execute_script(widths))[0] > 300
