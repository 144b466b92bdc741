"""Settings of ds4-kvcache: where they come from, and what is said about those that are wrong."""

from pathlib import Path

import pytest
from ds4_kvcache.budget import Budget
from ds4_kvcache.settings import Settings
from ds4_runtime.address import Home
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


def test_sizes_have_units(home: Path, environment: pytest.MonkeyPatch) -> None:
    """Bytes can be written as people say them, from every source, and plain numbers are exact."""
    for text, count in (
        ("16000001", 16_000_001),
        ("20GB", 20_000_000_000),
        ("512MiB", 512 << 20),
        ("1.5 tb", 1_500_000_000_000),
        ("16000k", 16_000_000),
    ):
        assert load(Settings, ["--budget-bytes", text]).budget_bytes == count
    environment.setenv("DS4_KVCACHE_FREE_FLOOR_BYTES", "1Gi")
    (home / "kvcache.toml").write_text("daily_write_budget_bytes = '3 GB'\nbudget_bytes = 2e7\n")
    settings = load(Settings, [])
    assert settings.free_floor_bytes == 1 << 30
    assert settings.daily_write_budget_bytes == 3_000_000_000
    assert settings.budget_bytes == 20_000_000


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--budget-bytes", "20XB", "'20XB' is no size; write a number of bytes, or one such as"),
        ("--budget-bytes", "1kB", "'1kB' must be 16000000 or more"),
        ("--budget-bytes", "1e9", "is no size"),
        ("--budget-bytes", "100TB", "'100TB' must be 64000000000000 or less"),
        ("--free-floor-bytes", "-1", "'-1' is no size"),
        ("--min-tokens", "many", "'many' is no whole number"),
        ("--min-tokens", "9000000", "'9000000' must be 8000000 or less"),
        ("--log-level", "loud", "'loud' must be 'debug', 'info', 'warning' or 'error'"),
        ("--folder", "", "is empty; leave it out for the default"),
        ("--log-file", "", "is empty"),
        ("--home", "", "is empty"),
    ],
)
def test_what_is_wrong_is_said_in_words(flag: str, value: str, said: str) -> None:
    """A value that cannot be used is told as a sentence about that value, with a hint."""
    error = refused(f"{flag}={value}")
    assert error.message.startswith(flag) and said in error.message
    assert error.hint


def test_home_is_a_flag_too(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """--home wins over DS4_HOME, for the file of settings and for what is asked of it later."""
    (tmp_path / "kvcache.toml").write_text("min_tokens = 200\n")
    assert load(Settings, ["--home", str(tmp_path)]).min_tokens == 200
    assert Home.find().path == tmp_path


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
