"""Settings of ds4-kvcache: where they come from, and what is said about those that are wrong."""

from pathlib import Path

import pytest
from ds4_kvcache.budget import Budget
from ds4_kvcache.settings import Settings
from ds4_runtime.errors import SettingError
from ds4_runtime.settings import load


@pytest.fixture(autouse=True)
def environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty home, and no variables of ours."""
    monkeypatch.setenv("DS4_HOME", str(home))
    return monkeypatch


def refused(*arguments: str) -> SettingError:
    with pytest.raises(SettingError) as error:
        load(Settings, list(arguments))
    return error.value


def test_settings_are_documented() -> None:
    """Each setting has its line in docs/settings.md, with the default that holds."""
    text = (Path(__file__).parents[3] / "docs/settings.md").read_text()
    lines = text.split("## ds4-kvcache")[1].splitlines()
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}` "
        assert any(line.startswith(f"| `{name}` | {default}| ") for line in lines), name
    assert sum(line.startswith("| `") for line in lines) == len(Settings.model_fields)


def test_flag_wins_over_variable_over_file(home: Path, environment: pytest.MonkeyPatch) -> None:
    """A flag wins over a variable, a variable over the file, the file over the default."""
    assert load(Settings, []).min_tokens == 512
    (home / "kvcache.toml").write_text("min_tokens = 200\nlog_level = 'debug'\n")
    assert load(Settings, []).min_tokens == 200
    environment.setenv("DS4_KVCACHE_MIN_TOKENS", "300")
    assert load(Settings, []).min_tokens == 300
    settings = load(Settings, ["--min-tokens", "400"])
    assert (settings.min_tokens, settings.log_level) == (400, "debug")


def test_wrong_values_say_where_they_came_from(home: Path, environment: pytest.MonkeyPatch) -> None:
    """A value that cannot be used is refused with the flag, variable or key that had it."""
    assert "--budget-bytes" in refused("--budget-bytes", "1000").message
    environment.setenv("DS4_KVCACHE_MIN_TOKENS", "many")
    assert "DS4_KVCACHE_MIN_TOKENS" in refused().message
    environment.delenv("DS4_KVCACHE_MIN_TOKENS")
    (home / "kvcache.toml").write_text("min_tokens = 1\n")
    assert "'min_tokens' in" in refused().message


def test_unknown_names_are_refused(home: Path, environment: pytest.MonkeyPatch) -> None:
    """A misspelt variable or key ends the start, with what it might have been."""
    environment.setenv("DS4_KVCACHE_BUDGET_BYTE", "1")
    assert refused().hint == "did you mean DS4_KVCACHE_BUDGET_BYTES?"
    environment.delenv("DS4_KVCACHE_BUDGET_BYTE")
    (home / "kvcache.toml").write_text("budget = 1\n")
    assert refused().reason == "UNKNOWN_SETTING"
    (home / "kvcache.toml").write_text("budget = ")
    assert refused().reason == "CONFIG_NOT_TOML"
    (home / "kvcache.toml").unlink()
    (home / "kvcache.toml").mkdir()
    assert refused().reason == "CONFIG_UNREADABLE"


def test_other_processes_have_their_own_variables(environment: pytest.MonkeyPatch) -> None:
    """A variable of ds4-daemon is none of this program's business."""
    environment.setenv("DS4_MAX_RUNNING", "4")
    assert load(Settings, []).min_tokens == 512


def test_default_budget_leaves_the_disk_its_room(tmp_path: Path) -> None:
    """Without settings the cache takes at most half of what the disk has above the floor."""
    budget = Budget.of(tmp_path, None, None, 0)
    assert 0 < budget.free_floor_bytes <= 20_000_000_000
    assert budget.budget_bytes <= max(budget.free_bytes() - budget.free_floor_bytes, 0) / 2 + 1e8
    assert Budget.of(tmp_path, 123, 456, 0) == Budget(tmp_path, 123, 456, 0)


def test_free_floor_stops_growth_and_not_reuse(tmp_path: Path) -> None:
    """Below the floor records may take what the files have already, and no page more."""
    budget = Budget(tmp_path, 10**9, 10**18, 0)
    assert budget.room_bytes(5_000_000) == 5_000_000
    assert Budget(tmp_path, 10**9, 0, 0).room_bytes(2 * 10**9) == 10**9
