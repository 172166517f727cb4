"""The page of the app in a real browser: Debian's chromium, driven by selenium. `pytest -m browser` runs it."""

import base64
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_app import random_pixels, saved

from modeling_mae import EvalNet
from modeling_mae.app import views


BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium: apt-get install chromium chromium-driver"),
]
webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
pytest.importorskip("gradio", reason="the app needs gradio: pip install gradio")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1300,1200"
)
GRID, SIDE = (4, 4), 448  # patches of the tiny model; pixels of its enlarged picture


@contextmanager
def serving(*command, cwd, **environment):
    """The address of a page that the command serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GRADIO_SERVER_PORT": str(port), **environment}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        until(lambda: process.poll() is not None or answers(url), 120)
        assert process.poll() is None, "the command ended"
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def until(condition, seconds=30):
    """What `condition` gives, as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


class Browser:
    """What a person does on the page, and sees there."""

    def __init__(self, driver, url: str):
        self.driver = driver
        driver.get(url)
        until(lambda: self.find("#file input[type=file]"))

    def find(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def message(self) -> str:
        return self.find("#message")[0].text

    def told(self, pattern: str) -> str:
        """The message, once it is like `pattern`."""
        return until(lambda: re.search(pattern, self.message()) and self.message())

    def upload(self, path) -> None:
        for cross in self.find("#file button[aria-label*=lear], #file button[aria-label*=emove]"):
            cross.click()
        until(lambda: self.find("#file input[type=file]"))[0].send_keys(str(path))

    def picture(self, name: str) -> np.ndarray:
        """``(height, width, 3)`` of the picture in a pane, as the browser has it."""
        script = """
            const [image, done] = arguments
            image.decode().then(() => {
                const canvas = document.createElement("canvas")
                canvas.width = image.naturalWidth
                canvas.height = image.naturalHeight
                canvas.getContext("2d").drawImage(image, 0, 0)
                done(canvas.toDataURL())
            })
        """
        image = until(lambda: self.find(f"#{name} img"))[0]
        address = self.driver.execute_async_script(script, image)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB"))

    def click_patch(self, name: str, row: int, column: int) -> None:
        image = self.find(f"#{name} img")[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        box = image.rect
        x, y = ((place + 0.5) / 4 * box[side] - box[side] / 2 for place, side in ((column, "width"), (row, "height")))
        actions = webdriver.ActionChains(self.driver)
        actions.move_to_element_with_offset(image, round(x), round(y)).click().perform()

    def choose(self, kind: str) -> None:
        self.find(f"#kind input[value={kind}]")[0].click()

    def set_ratio(self, value: float) -> None:
        number = self.find("#ratio input[type=number]")[0]
        number.send_keys(webdriver.Keys.CONTROL, "a")
        number.send_keys(str(value), webdriver.Keys.TAB)

    def slide_to_the_left_end(self) -> None:
        self.find("#ratio input[type=range]")[0].send_keys(webdriver.Keys.HOME)

    def addresses(self) -> set[str]:
        """Hosts of everything that the page has fetched."""
        names = self.driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        return {re.match(r"\w+:(//[^/]*)?", name)[0] for name in names}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    # No network but this machine: what the page wants from elsewhere is not there.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three images and a file that is none."""
    folder = tmp_path_factory.mktemp("files")
    for i in range(3):
        Image.fromarray(random_pixels(i)).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"<b>not</b> an image")
    return folder


@pytest.fixture(scope="module")
def browser(driver, files, tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("pretrained")
    saved(checkpoint)
    with serving("-m", "modeling_mae", "app", checkpoint, "--images", files, cwd=ROOT) as url:
        browser = Browser(driver, url)
        browser.upload(files / "1.png")
        browser.told("1.png: 12 of 16 patches hidden")
        yield browser


def expected(i: int) -> np.ndarray:
    return np.kron(random_pixels(i), np.ones((SIDE // 32, SIDE // 32, 1), np.uint8))


def patch(picture: np.ndarray, index: int) -> np.ndarray:
    side = SIDE // 4
    row, column = index // 4 * side, index % 4 * side
    return picture[row : row + side, column : column + side]


def hidden(picture: np.ndarray) -> set[int]:
    return {i for i in range(16) if (patch(picture, i) == views.HIDDEN).all()}


def test_an_uploaded_image_is_shown_masked_and_reconstructed(browser, files):
    browser.upload(files / "2.png")
    browser.told("2.png: 12 of 16")
    masked, reconstruction = browser.picture("masked"), browser.picture("reconstruction")
    assert len(hidden(masked)) == 12
    for i in range(16):
        is_original = np.array_equal(patch(reconstruction, i), patch(expected(2), i))
        assert is_original == (i not in hidden(masked))
    for name in ("class-attention", "patch-attention", "components"):
        assert browser.picture(name).shape == (SIDE, SIDE, 3)
    nearest = browser.find("#neighbours img")
    assert len(nearest) == 3 and browser.find("#neighbours .caption-label")[0].text.split() == ["1.00", "2.png"]


def test_the_slider_changes_what_is_hidden(browser):
    for ratio, count in ((0.5, 8), (0.25, 4), (0.75, 12)):
        browser.set_ratio(ratio)
        browser.told(f"^{count} of 16 patches hidden")
        assert len(hidden(browser.picture("masked"))) == count
    browser.slide_to_the_left_end()
    browser.told("^1 of 16 patches hidden")
    browser.set_ratio(0.75)
    browser.told("^12 of 16")


def test_the_kind_of_mask_and_another_mask(browser):
    browser.choose("grid")
    until(lambda: hidden(browser.picture("masked")) == set(range(16)) - {0, 2, 8, 10})
    browser.choose("random")
    until(lambda: hidden(browser.picture("masked")) != set(range(16)) - {0, 2, 8, 10})
    before = hidden(browser.picture("masked"))
    browser.find("#again")[0].click()
    until(lambda: hidden(browser.picture("masked")) != before)


def test_clicked_patches_are_hidden(browser):
    browser.choose("clicked")
    browser.told("^0 of 16 patches hidden: click")
    for count, (row, column) in enumerate(((0, 0), (1, 2), (3, 3)), start=1):
        browser.click_patch("masked", row, column)
        browser.told(f"^{count} of 16 patches hidden")
    assert hidden(browser.picture("masked")) == {0, 6, 15}
    browser.click_patch("masked", 1, 2)
    browser.told("^2 of 16 patches hidden")
    assert hidden(browser.picture("masked")) == {0, 15}
    browser.choose("random")
    browser.told("^12 of 16")


def test_a_clicked_patch_is_framed_and_shows_its_attention(browser):
    browser.click_patch("original", 0, 1)
    browser.told("row 1, column 2")
    before = browser.picture("patch-attention")
    browser.click_patch("original", 3, 0)
    browser.told("row 4, column 1")
    assert not np.array_equal(browser.picture("patch-attention"), before)
    frame = (browser.picture("original") == views.MARK).all(2)  # (SIDE, SIDE)
    rows, columns = np.nonzero(frame)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (336, 447, 0, 111)


def test_another_block(browser):
    before = browser.picture("components")
    browser.find("#block input[type=range]")[0].send_keys(webdriver.Keys.HOME)
    browser.told("^block 1 of 2")
    assert not np.array_equal(browser.picture("components"), before)


def test_an_image_of_the_folder(browser):
    browser.find("#samples button")[0].click()
    browser.told("^0.png: ")
    browser.find("#neighbours button")[1].click()
    browser.told("^[12].png: ")


def test_a_bad_file_is_one_line_and_changes_nothing(browser, files):
    before = browser.picture("masked")
    browser.upload(files / "bad.png")
    assert "bad.png is not a readable image" in browser.told("bad.png") and "\n" not in browser.message()
    assert browser.find("#message .error")
    assert np.array_equal(browser.picture("masked"), before)
    browser.upload(files / "1.png")
    browser.told("1.png: 12 of 16")
    assert not browser.find("#message .error")


def test_nothing_comes_from_the_network(browser):
    assert {address for address in browser.addresses() if "127.0.0.1" not in address} <= {"data:", "blob:"}
    assert not [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_on_a_phone_nothing_is_cut_off(browser):
    browser.told(".")
    command, script = browser.driver.execute_cdp_cmd, browser.driver.execute_script
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    command("Emulation.setDeviceMetricsOverride", phone)
    try:
        assert until(lambda: script("return innerWidth") == 390)
        assert script("return document.documentElement.scrollWidth") <= 390
        style = "return getComputedStyle(document.querySelector('#neighbours .grid-container')).gridTemplateColumns"
        assert len(script(style).split()) == 4
        widths = script("return [...document.querySelectorAll('.pane.clickable img')].map(image => image.clientWidth)")
        assert len(widths) == 2 and min(widths) > 300  # a finger meets a patch
    finally:
        command("Emulation.clearDeviceMetricsOverride", {})


def test_the_message_can_be_read_in_the_dark(browser):
    """The contrast that WCAG 2 asks for is 4.5."""
    script = browser.driver.execute_script
    contrast = """
        const style = getComputedStyle(document.querySelector("#message p"))
        const luminance = color => color.match(/[\\d.]+/g).slice(0, 3).map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
            .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0)
        const [low, high] = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => a - b)
        return [(high + 0.05) / (low + 0.05), luminance(style.backgroundColor)]
    """
    ratio, background = script(contrast)
    assert ratio > 4.5 and background > 0.5
    script("document.body.classList.add('dark')")
    try:
        ratio, background = script(contrast)
        assert ratio > 4.5 and background < 0.1
    finally:
        script("document.body.classList.remove('dark')")


def test_a_classifier_in_a_space(driver, files, tmp_path):
    """A Space is a folder of its own: it runs with nothing of this one."""
    saved(tmp_path / "run", EvalNet, num_labels=3, id2label={0: "cat", 1: "dog", 2: "eel"})
    words = [tmp_path / "run", "--to_space", "me/demo", "--space_dir", tmp_path / "space"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HF_HOME": str(tmp_path / "home")}
    subprocess.run(
        [sys.executable, "-m", "modeling_mae", "app", *map(str, words)], cwd=ROOT, check=True, env=environment
    )
    shutil.rmtree(tmp_path / "run")
    with serving("app.py", cwd=tmp_path / "space", PYTHONPATH="") as url:
        browser = Browser(driver, url)
        browser.upload(files / "1.png")
        browser.told("1.png")
        text = until(
            lambda: re.search("cat|dog|eel", browser.find("#scores")[0].text) and browser.find("#scores")[0].text
        )
        assert {"cat", "dog", "eel"} <= set(text.split())
        assert "is a classifier and has no decoder" in browser.find("#no-decoder")[0].text
        assert not browser.find("#masked img") and browser.picture("class-attention").shape == (SIDE, SIDE, 3)
