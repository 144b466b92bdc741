"""The embedded model, where the installation lacks it."""

from pathlib import Path

import pytest
from ds4_daemon import embedded
from ds4_daemon.errors import ModelFileError
from ds4_daemon.main import choose_model
from ds4_daemon.settings import Settings


def test_a_missing_file_is_said_and_nothing_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the file, a start with no model is refused with its path and what to do."""
    monkeypatch.setattr(embedded, "_FILE", tmp_path / "nano.gguf")
    with pytest.raises(ModelFileError) as refused:
        choose_model(Settings.model_construct(model=None))
    assert refused.value.reason == "EMBEDDED_MODEL_MISSING"
    assert str(tmp_path / "nano.gguf") in refused.value.message
    assert "--model" in refused.value.hint
