"""Fixtures that several files share, each made once."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

# Tests run side by side: threads of one process that wait would take the cores from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

# `import helpers` and `import benchmarks`, however pytest is started.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

from helpers import STYLES, make_pipeline, make_tokenizer, model_config, random_decoder

from mmfusion import Pipeline
from mmfusion.cli import main
from mmfusion.codecs.image import PixelCodec
from mmfusion.codecs.text import Tokenizer
from mmfusion.data_pipelines.converters.digits import write_digits
from mmfusion.export import export

Command = Callable[..., tuple[int, str, str]]


def pytest_configure(config: pytest.Config) -> None:
    # diffusers' multistep schedulers on NumPy 2; nothing that we can mend.
    config.addinivalue_line("filterwarnings", "ignore:__array__ impl:DeprecationWarning")
    # The hub's client, of its own http client.
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=:DeprecationWarning")
    # As in mmfusion/codecs/image.py, whose filters pytest takes back: one bad picture gives 5,000.
    config.addinivalue_line("filterwarnings", "ignore:Tag data larger than file:UserWarning")
    config.addinivalue_line("filterwarnings", "ignore:Corrupt EXIF data:UserWarning")
    config.addinivalue_line("filterwarnings", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards, split and tokenizer of the digits pipeline; to be read, not changed."""
    folder = tmp_path_factory.mktemp("digits_data")
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session", params=STYLES)
def ending(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Pipeline:
    """A random model of each block style, whose answers end now and then."""
    return make_pipeline(tokenizer, STYLES[request.param], louder=6, seed=1, codec=PixelCodec)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A random model of the digits, exported; to be read, not changed."""
    config = model_config(text={"tokenizer": str(tokenizer.path)})
    path = tmp_path_factory.mktemp("exported") / "model"
    export(config, random_decoder(config, len(tokenizer)).state_dict(), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: nothing is read from the user's, or left there."""
    monkeypatch.setenv("MMFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `mmfusion ...` here: its exit code, and what it wrote to both streams."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return int(stop.value.code or 0), *capsys.readouterr()

    return call
