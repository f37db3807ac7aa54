"""The page of `mmfusion demo`, clicked in a real browser that is not seen."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import model_config, random_decoder, run_config
from PIL import Image as PILImage

from mmfusion import ImageSlot, Pipeline, UserError
from mmfusion.card import CARD
from mmfusion.cli.demo import _examples
from mmfusion.codecs.image import prepare
from mmfusion.codecs.text import Tokenizer
from mmfusion.config import load, save
from mmfusion.export import SHIPPED, export
from mmfusion.serving.live import live

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'mmfusion[demo]'")
webdriver = pytest.importorskip("selenium.webdriver", reason="clicking needs selenium")
looks = pytest.importorskip("mmfusion.serving.looks")
uploads = pytest.importorskip("mmfusion.serving.uploads")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PROMPT = "a handwritten seven"
STYLED = ["a rocket, twemoji style", "an owl, noto style", "a red apple, fluent style"]
FLAGS = (
    "headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "disable-extensions",
    "disable-background-networking", "disable-component-update", "force-prefers-reduced-motion",
)  # fmt: skip
PATIENCE = 240  # seconds, on a busy machine


# Without a browser


def test_a_slow_reader_gets_the_newest_report_and_then_the_answer() -> None:
    told, read_on = threading.Event(), threading.Event()

    def work(report: Callable[[Any], None], left: threading.Event) -> str:
        report(0)
        read_on.wait()
        for number in range(1, 10):
            report(number)
        told.set()
        time.sleep(0.2)
        return "done"

    news = live(work)
    assert next(news) == (False, 0)
    read_on.set()
    told.wait()
    assert list(news) == [(False, 9), (True, "done")]


def test_an_error_is_raised_where_it_is_read() -> None:
    def work(report: Callable[[Any], None], left: threading.Event) -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        list(live(work))


def test_who_leaves_is_noticed() -> None:
    noticed = threading.Event()

    def work(report: Callable[[Any], None], left: threading.Event) -> None:
        report(0)
        if left.wait(10):
            noticed.set()

    news = live(work)
    next(news)
    news.close()
    assert noticed.wait(10)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (40, 24)])
def test_an_enlarged_picture_is_the_same_to_the_codec(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    small = PILImage.fromarray(pixels)
    large = looks.enlarged(small)
    assert 256 < max(large.size) <= 512
    side = min(size)
    assert np.array_equal(prepare(large, side, 3), prepare(small, side, 3))


def test_text_of_a_visitor_is_no_markup() -> None:
    shown = looks.talk([("user", "<b>${1}{{2}}</b>")], "")
    assert "<b>" not in shown
    assert "${" not in shown
    assert "{{" not in shown


def test_without_gradio_the_message_says_what_to_install(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, error = command("demo")
    assert code == 2
    assert error.startswith("error: ")
    assert "pip install 'mmfusion[demo]'" in error


def test_the_colour_model_is_shown_unless_another_is_named(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, *_: Any) -> None:
        asked.append(name)
        raise UserError("far enough")

    monkeypatch.setattr(Pipeline, "from_pretrained", load)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for more in ((), ("--model", "digits")):
        assert command("demo", "--port", port, *more) == (2, "", "error: far enough\n")
    assert asked == ["emoji", "digits"]


def test_examples_are_the_models_own(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its run, and wherever it is saved; whatever run the user stands in."""
    config = run_config(tmp_path / "data", tmp_path)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"sheet_prompts": STYLED})}
    )
    save(config, tmp_path / "config.yaml")
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "report.json").write_text('{"figures": 1}')  # the page has no use for it
    assert _examples(tmp_path / "model") == STYLED
    (tmp_path / "report.json").unlink()
    Pipeline.from_pretrained(tmp_path, "cpu").save_pretrained(tmp_path / "away/mine")
    assert _examples(tmp_path / "away/mine") == STYLED
    (tmp_path / "away/mine" / CARD).write_text("---\nwidget: [a, {text: 1}]\n---\n")
    assert _examples(tmp_path / "away/mine") == []
    monkeypatch.chdir(tmp_path)
    for name in sorted(found.name for found in SHIPPED.iterdir()):
        source = Pipeline.from_pretrained(name, "cpu").source
        assert _examples(source) == load(name).train.sheet_prompts != []


# In a browser


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("digits")


@pytest.fixture(scope="module")
def own(pipeline: Pipeline) -> list[PILImage.Image]:
    """The pictures that lie on the page from the start."""
    return pipeline.class_to_image(range(10))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served("digits", tmp_path_factory.mktemp("served")) as address:
        yield address


@contextmanager
def served(model: str, folder: Path) -> Iterator[str]:
    """A model's page, served by the command, which leaves nothing behind in `folder`."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium with its driver on this machine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mmfusion", "demo", "--model", model, "--port", str(port)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, **piped)
    said = server.stdout.readline()
    assert f"127.0.0.1:{port}" in said, server.stderr.read()
    assert [*folder.glob("mmfusion-page-*")]
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    _, errors = server.communicate(timeout=PATIENCE)
    assert server.returncode == 128 + signal.SIGTERM, errors
    assert not [*folder.glob("mmfusion-page-*")]


@pytest.fixture(scope="module")
def page(address: str) -> Iterator["Page"]:
    with chromium(1280, 900) as driver:
        yield Page(driver, address, pictures=10)


@contextmanager
def chromium(width: int, height: int) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for given in FLAGS:
        options.add_argument(f"--{given}")
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """What a visitor sees and does."""

    def __init__(self, driver: Any, address: str, pictures: int) -> None:
        self.driver = driver
        driver.get(address)
        self.wait(lambda: len(self.all(".tray img")) == pictures)

    def all(self, selector: str) -> list[Any]:
        """The elements of a selector that are seen."""
        return [e for e in self.driver.find_elements("css selector", selector) if e.is_displayed()]

    def wait(self, until: Callable[[], Any]) -> Any:
        """What `until` gives when it is something; what it raises meanwhile is early, not wrong."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if found := until():
                    return found
            except Exception:
                time.sleep(0.1)
            time.sleep(0.1)
        return until() or pytest.fail("it did not come to be; see the lines above")

    def press(self, text: str, selector: str = "button:not([role=tab])") -> None:
        self.wait(lambda: [e for e in self.all(selector) if e.text.strip() == text])[0].click()

    def open(self, tab: str) -> None:
        self.press(tab, "button[role=tab]")
        self.wait(lambda: self.all("button[role=tab][aria-selected=true]")[0].text.strip() == tab)
        time.sleep(0.5)  # the server hears of it, too

    def take(self, number: int) -> None:
        """Click a picture of the tray."""
        self.wait(lambda: self.all(".tray .grid-container button"))[number].click()

    def give(self, *numbers: int) -> None:
        """Click pictures of the tray, one after another, each of which takes a place."""
        for number in numbers:
            before = len(self.all(".given img"))
            self.take(number)
            self.wait(lambda before=before: len(self.all(".given img")) == before + 1)

    def says(self, message: str) -> None:
        """Wait for a message, which goes by itself."""
        self.wait(lambda: any(message in shown.text for shown in self.all(".toast-body")))

    def done(self, where: str) -> bool:
        """Whether no bar is shown any more."""
        return bool(self.driver.find_elements("css selector", f"{where} .bar.done"))

    def drawn(self, where: str) -> PILImage.Image:
        """The finished picture in an element."""
        self.wait(lambda: self.all(f"{where} img") and self.done(where))
        image = self.all(f"{where} img")[-1]
        data = image.get_attribute("src").removeprefix("data:image/png;base64,")
        return PILImage.open(io.BytesIO(base64.b64decode(data)))

    def seed(self) -> int:
        """What the open tab's dial shows, which is opened for it."""
        self.all("button.label-wrap")[0].click()
        return int(self.wait(lambda: self.all("input[aria-label=Seed]"))[0].get_attribute("value"))


def same(a: PILImage.Image, b: PILImage.Image) -> bool:
    """Equal within a level: who shares a pass may change the last bit."""
    return bool(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1)


SEEN = """
window.seen = new Set();
new MutationObserver(() => {
  const image = document.querySelector('#drawn img');
  if (image) window.seen.add(image.src);
}).observe(document.querySelector('#drawn'), {subtree: true, childList: true, attributes: true});
"""


def test_draws_while_one_looks(page: Page, pipeline: Pipeline) -> None:
    page.open("Draw")
    before = len(page.all(".tray img"))
    page.press("Draw")
    page.says("prompt is empty")
    page.driver.execute_script(SEEN)
    page.press(PROMPT, ".gallery-item, .gallery button")
    page.wait(lambda: page.all("textarea")[0].get_attribute("value") == PROMPT)
    page.press("Draw")
    picture = page.drawn("#drawn")
    assert picture.size == (8, 8)
    assert len(page.driver.execute_script("return [...window.seen]")) >= 3, "it did not form"
    assert same(picture, pipeline.text_to_image(PROMPT, seed=page.seed()))
    page.wait(lambda: len(page.all(".tray img")) == before + 1)


def test_edits_where_one_paints(page: Page, own: list[PILImage.Image]) -> None:
    page.open("Edit")
    page.press("Edit")
    page.says("a picture is missing")
    page.take(-4)  # a six, the newest being the first
    canvas = page.wait(lambda: page.all("#canvas canvas"))[0]
    time.sleep(1)
    page.press("class", "#edit label, label")
    page.press("Edit")
    page.says("nothing is painted")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    time.sleep(0.5)
    hand = webdriver.ActionChains(page.driver)
    width, height = canvas.size["width"], canvas.size["height"]
    hand.move_to_element_with_offset(canvas, -width // 8, -height // 4).click_and_hold()
    hand.move_by_offset(0, height // 4).move_by_offset(0, height // 4).release().perform()
    page.press("Edit")
    picture = np.asarray(page.drawn("#edited"), int)
    changed = picture != np.asarray(own[6], int)
    assert changed[:, :4].any()
    assert not changed[:, 4:].any()


def test_captions(page: Page, pipeline: Pipeline, own: list[PILImage.Image]) -> None:
    page.open("Caption")
    page.take(-7)
    page.wait(lambda: page.all(".given img"))
    page.press("Caption")
    wanted = pipeline.image_to_text(own[3])
    page.wait(lambda: page.all("#caption")[0].text.strip() == wanted)


@pytest.mark.parametrize(
    "data",
    [b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"],
    ids=["noise", "eps"],
)
def test_what_is_no_picture_is_one_line(page: Page, tmp_path: Path, data: bytes) -> None:
    page.open("Caption")
    for clear in page.all("[aria-label='Remove Image']"):
        clear.click()
    (tmp_path / "sent.png").write_bytes(data)
    upload = ".given input[type=file]"
    sent = page.wait(lambda: page.driver.find_elements("css selector", upload))[0]
    sent.send_keys(str(tmp_path / "sent.png"))
    page.wait(lambda: page.driver.find_elements("css selector", ".given img"))  # a broken one
    page.press("Caption")
    page.says(uploads.SENT_WRONG)


def test_chats_in_words_and_pictures(page: Page) -> None:
    page.open("Chat")
    before = len(page.all(".tray img"))
    page.press("Say what follows")
    page.says("prompt is empty")
    page.take(-7)
    page.wait(lambda: len(page.all(".talk .user img")) == 1)
    page.all("#box textarea")[0].send_keys("then comes")
    page.press("Draw what follows")
    page.wait(lambda: len(page.all(".tray img")) == before + 1)
    assert page.all(".talk .user")[1].text == "then comes"
    assert len(page.all(".talk .model img")) == 1
    page.press("Say what follows")
    page.wait(lambda: len(page.all(".talk .model")) == 2)
    page.press("Start over")
    page.wait(lambda: not page.all(".talk .model"))


def test_nothing_is_fetched_from_elsewhere(page: Page, address: str) -> None:
    sent = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert len(asked) > 10
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


# A model that draws in colour and in styles


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Pipeline:
    """A random model whose card names prompts in three styles."""
    quick = {task: {"num_inference_steps": 3} for task in ("text_to_image", "interleaved")}
    config = model_config(
        image={"size": 16, "channels": 3, "patch": 4},
        text={"tokenizer": str(tokenizer.path)},
        classes=[],
        generation=quick,
    )
    card = "---\nwidget:\n" + "".join(f"- text: {prompt}\n" for prompt in STYLED) + "---\n"
    weights = random_decoder(config, len(tokenizer)).state_dict()
    folder = tmp_path_factory.mktemp("colour") / "model"
    export(config, weights, folder, pages={CARD: card.encode()})
    return Pipeline.from_pretrained(folder, "cpu")


@pytest.fixture(scope="module")
def drawn(colour: Pipeline) -> list[PILImage.Image]:
    """The pictures that lie on its page from the start."""
    return colour.text_to_image(STYLED)


@pytest.fixture(scope="module")
def styled(colour: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with (
        served(str(colour.source), tmp_path_factory.mktemp("served")) as address,
        chromium(1280, 900) as driver,
    ):
        yield Page(driver, address, pictures=len(STYLED))


def test_restyles(styled: Page, colour: Pipeline, drawn: list[PILImage.Image]) -> None:
    """The picture, then the words of an example that is clicked."""
    styled.open("Restyle")
    styled.give(1)
    words = "the same in fluent style"
    styled.press(words, ".gallery-item, .gallery button")
    styled.wait(lambda: styled.all("textarea")[0].get_attribute("value") == words)
    styled.press("Restyle")
    picture, seed = styled.drawn("#restyled"), styled.seed()
    assert (picture.size, picture.mode) == ((16, 16), "RGB")
    assert same(picture, colour.generate([drawn[1], words, ImageSlot()], seed=seed)[-1])
    for other in ([words, drawn[1]], [drawn[0], words], [drawn[1]]):
        assert not same(picture, colour.generate([*other, ImageSlot()], seed=seed)[-1])


def test_goes_on_with_an_analogy(
    styled: Page, colour: Pipeline, drawn: list[PILImage.Image]
) -> None:
    """Three pictures in the order in which they were clicked; then there is room for others."""
    styled.open("Analogy")
    before = len(styled.all(".tray img"))
    styled.give(*range(before - 3, before))
    styled.press("Draw the fourth")
    picture, seed = styled.drawn("#fourth"), styled.seed()
    assert (picture.size, picture.mode) == ((16, 16), "RGB")
    assert same(picture, colour.generate([*drawn, ImageSlot()], seed=seed)[-1])
    assert not same(picture, colour.generate([*drawn[::-1], ImageSlot()], seed=seed)[-1])
    styled.wait(lambda: len(styled.all(".tray img")) == before + 1)
    styled.take(0)
    styled.wait(lambda: len(styled.all(".given img")) == 1)
