"""What a public bug report must not have."""

import json
from pathlib import Path

import pytest

from polyphi.doctor.findings import Finding, display_value, scrub


def test_secrets_and_personal_paths_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "alice"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alice")
    environment = {"HF_TOKEN": "hf_abcdefgh", "SOME_API_KEY": "12345", "HF_HOME": "/x"}
    value = {
        "path": f"{home}/models and {home}",
        "other": ["/data/alice/x", "alices /alice2/"],
        "error": "401 for hf_abcdefgh at https://me:secret@host/x",
        "count": 12345,
    }
    clean = scrub(value, environment)
    assert clean["path"] == "~/models and ~"
    assert clean["other"] == ["/data/USER/x", "alices /alice2/"]
    assert clean["error"] == "401 for *** at https://host/x"
    assert clean["count"] == 12345
    assert str(home) not in json.dumps(clean)


def test_values_of_variables() -> None:
    assert display_value("POLYPHI_API_KEY", "abc") == "set"
    assert display_value("HF_ENDPOINT", "https://u:p@hub:80/a?token=b") == "https://hub:80/a"
    assert display_value("OMP_NUM_THREADS", "4") == "4"


@pytest.mark.parametrize(("state", "cure"), [("ok", "a cure"), ("slow", None), ("wrong", None)])
def test_exactly_what_is_not_ok_has_a_cure(state: str, cure: str | None) -> None:
    with pytest.raises(AssertionError):
        Finding("CPU", "x", "text", state, cure)  # type: ignore[arg-type]
