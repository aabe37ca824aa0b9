"""What a sweep writes down when it begins, and reads when it goes on."""

from pathlib import Path

from launcher.config import LaunchConfig, TuneOptions
from launcher.tune.begun import Begun
from launcher.tune.shape import Shape
from launcher.tune.sweep import Ready, _write
from tests.helpers.histories import TAPS, sweep_of


def test_no_file_of_a_sweep_holds_a_secret(tmp_path: Path) -> None:
    sweep, space = sweep_of(tmp_path, TAPS)
    begun = Begun(TuneOptions(trials=3), LaunchConfig(gpus=1, extra_env={"MY_TOKEN": "abc123"}), held_out=0)
    ready = Ready(sweep, begun, space, (), Shape("cpu", 1, 0, 1), (), {})
    _write(ready, ["fmfsd-tune", "--env", "MY_TOKEN=abc123", "--env=OTHER_KEY=abc123"])
    assert "MY_TOKEN" in sweep.ledger.read_text()
    assert not [path for path in sweep.path.rglob("*") if path.is_file() and "abc123" in path.read_text()]
