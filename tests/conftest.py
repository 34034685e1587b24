"""Fixtures shared by the tests of all packages."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from polyphi.cli import main
from polyphi.model.config import (
    AdapterConfig,
    AudioConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
)
from polyphi.processing.tokenizer import Tokenizer

# A test imports a helper by its full name (`from tests.core.parity import oracle`): an installed package may have the
# name of a folder of tests, as `kernels` does. At the end of the path, so that tests of a wheel import the wheel.
sys.path.append(str(Path(__file__).parents[1]))

from tests import allowed_skips
from tests.fixtures.command_line import Refused, RunCommand
from tests.fixtures.engines import SAYINGS
from tests.fixtures.processes import Children, new_children

# No test is timed: machines are shared.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    allowed_skips.install(config)
    # What a shell starts in the background ignores interrupts, and so would all processes that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs a command line in this process: its exit code, and what it printed to standard output and error."""

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run_command: RunCommand) -> Refused:
    """Runs a command line that is refused: returns the one line that it prints to standard error."""

    def run(*words: str) -> str:
        code, _, error = run_command(*words)
        assert code == 2, error
        (line,) = error.splitlines()
        return line

    return run


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SAYINGS, vocab_size=384)


@pytest.fixture
def children() -> Children:
    """The processes that this one has started since the test began."""
    return new_children()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def micro_run(shared_folder: Path) -> Path:
    """A finished micro run in float32, made once for all workers by one process (long tests run branches in parallel);
    tests only read it. Packages come from the cache where it has them; what can't be downloaded is left out."""
    import fcntl

    from polyphi.train.options import TrainOptions
    from polyphi_recipe.graph import processes
    from polyphi_recipe.graph.graph import Run

    out, done = shared_folder / "micro_run" / "micro", shared_folder / "micro_run.done"
    with done.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(processes, "run_parallel", lambda *_: False)
                Run("micro", out, options=TrainOptions(precision="fp32")).reproduce()
            done.touch()
    return out


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """The real structure, running in milliseconds: crops of 4 x 4 patches, a LongRoPE switch at 64 tokens."""
    decoder = DecoderConfig(
        vocab_size=1000,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        short_factor=(1.0,) * 6,
        long_factor=(1.0, 1.5, 2.0, 4.0, 8.0, 16.0),
        bos_token_id=0,
        pad_token_id=0,
        eos_token_ids=(1, 0),
    )
    vision = VisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        crop_size=56,
        image_token_id=10,
    )
    audio = AudioConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_blocks=2,
        nemo_conv_channels=16,
        ext_pw_out_channel=32,
        depthwise_separable_out_channel=32,
        audio_token_id=11,
    )
    adapters = {"vision": AdapterConfig(4, 8.0), "speech": AdapterConfig(5, 10.0, 0.01)}
    return ModelConfig(decoder, vision, audio, adapters)
