"""The page in a real browser, with the clicks that a person makes, and what the server refuses."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib import error, request

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from igpt_model.model.bundle import ModelBundle
from igpt_model.model.config import ModelConfig
from igpt_model.model.network import ImageGPT
from igpt_model.probing.head import ProbeHead
from igpt_model.probing.probed import ProbedModel
from tests.machine import require
from tests.rigs.waiting import wait_until

pytestmark = pytest.mark.programs

SIDE, COLOURS, WIDTH = 16, 27, 64
HOSTILE = "<img src=x onerror=document.title='hacked'>"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
# Keeps each picture that the first tile ever shows.
RECORD = """
window.shown = [];
new MutationObserver(() => {
  const tile = [...document.querySelectorAll('img[alt^="Picture 1"]')].find((image) => image.offsetParent);
  if (tile && tile.src && window.shown.at(-1) !== tile.src) window.shown.push(tile.src);
}).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["src"] });
"""

_SHOWN = (
    "[...document.querySelectorAll(arguments[0])].filter((part) => part.checkVisibility({ visibilityProperty: true }))"
)
SHOWN = f"return {_SHOWN}.filter((part) => !arguments[1] || part.innerText.trim() === arguments[1])"
TEXTS = f"return {_SHOWN}.map((part) => part.innerText.trim())"
SOURCES = f"return {_SHOWN}.map((part) => part.src)"


def make_model(folder: Path, **fields: Any) -> Path:
    """A model with a probe whose classes have hostile names; slow enough that its pictures can be seen to grow."""
    torch.manual_seed(0)
    model = ImageGPT(ModelConfig(layers=4, width=WIDTH, heads=4, resolution=SIDE, colours=COLOURS, **fields)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.2)
    levels = np.linspace(-1, 1, 3, dtype=np.float32)
    palette_K3 = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    random = np.random.default_rng(0)
    head = ProbeHead(
        mean_C=np.zeros(WIDTH, np.float32),
        scale_C=np.ones(WIDTH, np.float32),
        weight_KC=random.normal(size=(2, WIDTH)).astype(np.float32),
        bias_K=np.zeros(2, np.float32),
        labels_K=np.array([0, 1]),
    )
    folder.mkdir()
    bundle = ModelBundle(model=model, palette_K3=palette_K3, classes=(HOSTILE, "temple"))
    ProbedModel(bundle=bundle, best_layer=2, head=head).save(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running `igpt playground`."""

    process: subprocess.Popen[str]
    url: str
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with a model that draws and one that upscales; it ends without a word."""
    folder = tmp_path_factory.mktemp("playground")
    log = folder / "log.txt"
    command = [sys.executable, "-m", "flows.cli", "playground", "--port", "0", "--home", str(folder / "home")]
    for name, fields in (("draws", {}), ("upscales", {"low_resolution": 4})):
        command += ["--model", str(make_model(folder / name, **fields))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
        )
    try:
        wait_until(lambda: "playground at" in log.read_text() or process.poll() is not None, said=log.read_text)
        url = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert url is not None, log.read_text()
        yield Server(process=process, url=url[0], log=log)
        workers = process_tree(process.pid)
        assert len(workers) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
        assert log.read_text().count("\n") == 2, log.read_text()
        assert not [worker for worker in workers if worker.is_running()]
        assert sorted(path.name for path in folder.iterdir()) == ["draws", "log.txt", "upscales"]
    finally:
        process.kill()
        process.wait()


def process_tree(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


class Person:
    """A browser, and what one does with it."""

    def __init__(self, driver: webdriver.Chrome, url: str, pictures: Path) -> None:
        self.driver, self.url, self.pictures = driver, url, pictures

    def open(self) -> None:
        self.driver.get(self.url)
        self.wait_for(".picture-input")

    def all(self, selector: str, text: str = "") -> list[WebElement]:
        """The parts that are shown, in one step: the page may change between two."""
        return self.driver.execute_script(SHOWN, selector, text)

    def texts(self, selector: str) -> list[str]:
        return self.driver.execute_script(TEXTS, selector)

    def sources(self, selector: str) -> list[str]:
        return self.driver.execute_script(SOURCES, selector)

    def wait_for(self, selector: str, text: str = "", count: int = 1) -> list[WebElement]:
        wait_until(lambda: len(self.all(selector, text)) >= count, seconds=60, said=self.complaints)
        return self.all(selector, text)

    def complaints(self) -> str:
        return f"{self.driver.get_log('browser')} {self.driver.find_element(By.TAG_NAME, 'body').text}"

    def bring(self, file: Path) -> None:
        before = self.sources(".square-chooser img")
        self.driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))
        wait_until(lambda: self.sources(".square-chooser img") not in ([], before), said=self.complaints)

    def tab(self, name: str) -> None:
        self.wait_for("[role=tab]", name)[0].click()
        self.wait_for(".about dl" if name == "About" else ".actions button", "" if name == "About" else name)

    def press(self, name: str) -> None:
        self.wait_for("button:enabled", name)[0].click()

    def status(self) -> str:
        return " ".join(self.texts("[role=status]"))

    def run(self, name: str) -> list[np.ndarray]:
        """Do what a tab is for; the pictures that are drawn."""
        self.driver.execute_script("document.querySelectorAll('.tile').forEach((tile) => tile.dataset.old = '1')")
        self.press(name)
        wait_until(lambda: not self.all(".tile[data-old]"), seconds=60, said=self.complaints)
        wait_until(lambda: self.status() == "Done.", seconds=60, said=self.complaints)
        return [pixels_of(source) for source in self.sources("img[alt^='Picture ']")]

    def fill(self, label: str, text: str) -> None:
        field = self.driver.find_element(By.CSS_SELECTOR, f"input[aria-label='{label}']")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def look_at(self, name: str) -> None:
        """Keep the whole page as a picture, for people."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (self.pictures / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def known(self) -> np.ndarray:
        """The pixels of the board that are not rubbed out, bool [SIDE, SIDE]."""
        places = self.driver.execute_script(
            """const c = document.querySelector(".pixel-board canvas"), n = arguments[0], s = c.width / n;
            const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            return [...Array(n * n).keys()].map((i) => data[4 * (Math.floor((Math.floor(i / n) + 0.5) * s) * c.width
                + Math.floor((i % n + 0.5) * s)) + 3] > 0)""",
            SIDE,
        )
        return np.array(places).reshape(SIDE, SIDE)


def pixels_of(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


@pytest.fixture(scope="module")
def person(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    require("browser")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--window-size=1280,960", "--hide-scrollbars"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            yield Person(driver, server.url, tmp_path_factory.mktemp("screenshots"))
        finally:
            driver.quit()


@pytest.fixture
def photo(photos: np.ndarray, tmp_path: Path) -> Path:
    file = tmp_path / f"{HOSTILE.replace('/', '')[:20]}.png"
    Image.fromarray(np.concatenate([photos[3], photos[70]], 1)).save(file)
    return file


def test_a_person_completes_a_picture(person: Person, photo: Path) -> None:
    person.open()
    assert person.status() == "Choose a picture first."
    assert person.all(".actions button:disabled", "Complete")
    person.look_at("empty")
    person.bring(photo)
    half = np.arange(SIDE)[:, None].repeat(SIDE, 1) < SIDE // 2
    wait_until(lambda: np.array_equal(person.known(), half))

    # Another part of the picture, by keyboard.
    board = person.wait_for(".pixel-board canvas")[0]
    shown = board.screenshot_as_png
    square = person.wait_for(".square-chooser-square")[0]
    square.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "-", "-")
    wait_until(lambda: board.screenshot_as_png != shown)

    # Fewer rows, and a hole in them: by pointer, and a pixel by keyboard.
    person.fill("Rows to keep", "6")
    expected = np.arange(SIDE)[:, None].repeat(SIDE, 1) < 6
    wait_until(lambda: np.array_equal(person.known(), expected))
    step = board.size["width"] / SIDE
    corner = -board.size["width"] / 2 + step / 2
    ActionChains(person.driver).move_to_element_with_offset(
        board, corner + 2 * step, corner + 2 * step
    ).click_and_hold().move_by_offset(3 * step, 0).release().perform()
    expected[2, 2:6] = False
    wait_until(lambda: np.array_equal(person.known(), expected), said=lambda: str(person.known().astype(int)))
    board.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, " ")
    expected[3, 6] = False
    wait_until(lambda: np.array_equal(person.known(), expected))

    person.fill("Pictures", "8")
    person.driver.execute_script(RECORD)
    drawn = person.run("Complete")
    assert len(drawn) == 8 and {picture.shape for picture in drawn} == {(SIDE, SIDE, 4)}
    grown = [int((pixels_of(url)[..., 3] == 255).sum()) for url in person.driver.execute_script("return window.shown")]
    assert len(grown) >= 3 and grown == sorted(grown) and grown[0] < SIDE * SIDE == grown[-1], grown
    given = pixels_of(*person.sources("img[alt='The pixels that are kept']"))
    assert np.array_equal(given[..., 3] == 255, expected)
    for picture in drawn:
        assert np.array_equal(picture[expected], given[expected])
    assert len({picture.tobytes() for picture in drawn}) > 1
    person.look_at("complete")


def test_the_same_seed_gives_the_same_pictures(person: Person) -> None:
    person.open()
    person.tab("Draw new")
    person.fill("Pictures", "2")
    person.fill("Seed", "7")
    first, again = person.run("Draw new"), person.run("Draw new")
    assert len(first) == 2 and np.array_equal(first, again)
    person.fill("Seed", "8")
    assert not np.array_equal(first, person.run("Draw new"))
    person.fill("Temperature", "0")
    cold = person.run("Draw new")
    assert np.array_equal(cold[0], cold[1])
    person.fill("Seed", Keys.BACKSPACE)
    person.press("Draw new")
    person.wait_for(".results [role=alert]", "Seed is empty: give a whole number from 0 to 4294967295")
    person.fill("Seed", "8")
    person.fill("Top-k", "3")
    person.fill("Top-p", "0.9")
    person.fill("Temperature", "1")
    drawn = person.run("Draw new")
    person.look_at("draw")
    person.press("Use this")
    person.wait_for(".square-chooser img")
    assert np.array_equal(pixels_of(*person.sources(".square-chooser img")), drawn[0])


def test_a_drawing_is_stopped(person: Person, photo: Path) -> None:
    person.open()
    person.tab("Draw new")
    person.fill("Pictures", "8")
    person.press("Draw new")
    person.tab("Complete")
    person.bring(photo)
    person.press("Complete")
    busy = "Your other tab, Draw new, is at work: wait for it, or stop it there."
    wait_until(lambda: person.status() == busy, said=person.complaints)
    person.tab("Draw new")
    person.press("Stop")
    wait_until(lambda: person.status() == "Stopped.", said=person.complaints)
    person.tab("Complete")
    assert person.status() == ""
    person.tab("Draw new")
    person.fill("Pictures", "1")
    assert len(person.run("Draw new")) == 1


def test_what_the_models_make_of_a_picture(person: Person, photo: Path) -> None:
    person.open()
    person.bring(photo)
    person.tab("Look")
    person.run("Look")
    maps = [pixels_of(source) for source in person.sources("img[alt^='Heat map']")]
    assert [picture.shape for picture in maps] == 2 * [(SIDE, SIDE, 4)]
    numbers = [float(text.split()[0]) for text in person.texts(".number")]
    assert all(0 < number < 20 for number in numbers) and numbers[0] != numbers[1]
    assert sorted(set(person.texts(".chance-name"))) == [HOSTILE, "temple"]
    assert person.driver.title == "Image GPT playground"
    person.look_at("look")
    person.tab("Enlarge")
    assert len(person.run("Enlarge")) == 4
    (small,) = person.sources("img[alt='The small version that the model is given']")
    assert pixels_of(small).shape == (4, 4, 4)
    person.look_at("enlarge")
    person.tab("About")
    draws, upscales = person.texts(".about dl")
    assert "upscales from 4x4" in upscales and "upscales" not in draws and "not stated" in draws
    person.look_at("about")


def test_pictures_are_dropped_and_pasted(person: Person, photo: Path) -> None:
    bring = """
    const bytes = Uint8Array.from(atob(arguments[1]), (character) => character.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "x.png", { type: "image/png" }));
    window.dispatchEvent(arguments[0] === "drop" ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data }));"""
    for way in ("drop", "paste"):
        person.open()
        person.driver.execute_script(bring, way, base64.b64encode(photo.read_bytes()).decode())
        person.wait_for(".square-chooser img")


def test_what_is_no_picture_is_refused_in_a_line(person: Person, photo: Path, tmp_path: Path) -> None:
    person.open()
    person.bring(photo)
    before = person.sources(".square-chooser img")
    file = tmp_path / "page.png"
    chooser = person.driver.find_element(By.CSS_SELECTOR, "input[type=file]")
    for content, line in ((HOSTILE.encode(), "not an image"), (b"", "zero bytes"), (bytes(21 << 20), "20 MB")):
        file.write_bytes(content)
        chooser.send_keys(str(file))
        wait_until(lambda line=line: line in " ".join(person.texts("[role=alert]")), said=person.complaints)
    assert person.sources(".square-chooser img") == before
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(file)
    person.bring(file)
    assert person.texts("[role=alert]") == []


def test_every_control_has_a_name(person: Person, photo: Path) -> None:
    person.open()
    person.bring(photo)
    for tab in ("Complete", "Draw new", "Enlarge", "Look", "About"):
        person.tab(tab)
        nodes = person.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        controls = [
            (node["role"]["value"], node["name"]["value"])
            for node in nodes
            if not node["ignored"]
            and any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
            and node["role"]["value"] not in ("RootWebArea", "generic", "tabpanel")
        ]
        assert len(controls) > 8
        assert [role for role, name in controls if not name] == [], controls


def test_it_fits_a_phone(person: Person, photo: Path) -> None:
    person.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        person.open()
        person.bring(photo)
        assert len(person.run("Complete")) == 4
        person.look_at("phone-complete")
        for tab in ("Look", "About"):
            person.tab(tab)
            if tab == "Look":
                person.run("Look")
            person.look_at(f"phone-{tab.lower()}")
            wide = person.driver.execute_script(
                "return [...document.querySelectorAll('.nicegui-content *')].filter((part) => part.offsetParent"
                " && part.getBoundingClientRect().right > innerWidth + 1).map((part) => part.className)"
            )
            assert wide == [] and person.driver.execute_script("return document.documentElement.scrollWidth") == 390
        left = {section.location["x"] for section in person.all("section")}
        assert len(left) == 1, "one column"
    finally:
        person.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_says_nothing_to_the_console(person: Person) -> None:
    said = [entry["message"] for entry in person.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in said if "422" not in message] == []


def answer(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    asked = request.Request(url, data, {name.title(): text for name, text in headers.items()})
    try:
        with request.urlopen(asked, timeout=60) as got:
            return got.status, got.read().decode()
    except error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_only_its_own_page_reaches_the_server(server: Server) -> None:
    assert answer(server.url)[0] == 200
    assert answer(server.url, host="evil.example") == (403, "this page is for 127.0.0.1 and localhost alone")
    assert answer(server.url, origin="http://evil.example") == (403, "this page answers no other page")
    assert answer(f"{server.url}/pictures/unknown", b"x")[0] == 404
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        head = f"POST /pictures/unknown HTTP/1.1\r\nHost: localhost\r\nContent-Length: {21 << 20}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).split()[1] == b"413"
    for origin, status in ((server.url, b"101"), ("http://evil.example", b"403")):
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(
                b"GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
                + f"Host: 127.0.0.1:{port}\r\nOrigin: {origin}\r\n".encode()
                + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                + b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
            )
            assert connection.recv(100).split()[1] == status


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/_nicegui/3.18.0/static/../../server.py",
        "/docs",
    ],
)
def test_no_file_of_the_server_is_reached(path: str, server: Server) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(100).split()[1] == b"404"
