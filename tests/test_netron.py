"""The exported graphs open in the real Netron, in a real browser."""

import shutil
import socket

import pytest
import torch

from Conf import SMOKE, in_space
from Libraries.Training.Graphs import export_graphs
from Libraries.U_Net import UNet

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
DRIVER = shutil.which("chromedriver")


def open_browser(profile, *flags):
    """Return the driver of a browser that knows nothing of the user's."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, *flags, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture
def browser(tmp_path):
    driver = open_browser(tmp_path / "profile")
    yield driver
    driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver is installed")
@pytest.mark.parametrize("name", ["graph.pt", "graph.pt2"])
def test_netron_shows_the_convolutions(name, tmp_path, browser):
    import netron
    from selenium.webdriver.support.ui import WebDriverWait

    network = UNet(in_space(SMOKE, "spectrogram").network, 1)
    export_graphs(network, (torch.zeros(1, *SMOKE.spectrogram.shape), torch.tensor([0])), tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = free.getsockname()
    netron.start(str(tmp_path / name), address=address, browse=False)
    try:
        browser.get(f"http://{address[0]}:{address[1]}")
        wait = WebDriverWait(browser, 60)
        wait.until(lambda page: page.find_element("id", "message-button").is_displayed())
        browser.find_element("id", "message-button").click()  # the cookie notice
        names = wait.until(
            lambda page: [e.text for e in page.find_elements("css selector", "svg .node-item text")]
        )
        assert any("conv" in name.lower() for name in names), names
        browser.save_screenshot(str(tmp_path / "netron.png"))
    finally:
        netron.stop(address)
