"""The life of the daemon's process: start, refusal, death, drain, and what it leaves."""

import os
import signal
import stat
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ds4_client import Delta, Ds4Error, FinishReason, OverloadedError, Text
from ds4_client.events import Finished
from ds4_daemon import embedded, standin
from ds4_daemon.settings import Settings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.wire.conftest import Daemon


@pytest.fixture
def make(home: Path, models: standin.StandIn) -> Any:
    """Makes daemons in one home; kills what still runs at the end."""
    made: list[Daemon] = []

    def one(*flags: str, model: Path | None = models.gguf) -> Daemon:
        made.append(Daemon(home, model, *flags))
        return made[-1]

    yield one
    for each in made:
        each.kill()


def test_a_daemon_that_is_held_up_is_waited_for(make: Any) -> None:
    """A process that gets no time of a busy machine for a second is not taken for one that left."""
    daemon = make().start()
    pid = daemon.status().process.pid
    os.kill(pid, signal.SIGSTOP)
    goes_on = threading.Timer(1.0, os.kill, (pid, signal.SIGCONT))
    goes_on.start()
    try:
        with daemon.client() as client:
            assert client.run("hello", max_tokens=2).usage.completion_tokens > 0
    finally:
        goes_on.join()


def test_directory_and_socket_are_private(daemon: Daemon) -> None:
    """The run directory is 0700, the socket 0600, and the temporary folder 0700 inside the home."""
    assert stat.S_IMODE(daemon.home.run_dir.stat().st_mode) == 0o700
    socket = daemon.home.socket("daemon").stat()
    assert stat.S_ISSOCK(socket.st_mode)
    assert stat.S_IMODE(socket.st_mode) == 0o600
    (scratch,) = daemon.home.tmp_dir.iterdir()
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700


def test_health_and_reflection_answer(daemon: Daemon) -> None:
    """Every service is SERVING and can be listed by reflection."""
    with daemon.channel() as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        health: Any = health_pb2_grpc.HealthStub(channel)
        ours = {"ds4.v1.Inference", "ds4.v1.Admin", "ds4.v1.Sessions", "ds4.v1.KvCache"}
        assert services >= ours
        for name in ("", *ours):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_second_daemon_is_refused_with_the_pid_of_the_first(daemon: Daemon) -> None:
    """A second daemon in one home leaves with 78, names the first one's pid, and harms nothing."""
    assert daemon.process is not None
    second = Daemon(daemon.home.path).run()
    assert second.returncode == 78
    assert str(daemon.process.pid) in second.stderr
    assert "ALREADY_RUNNING" in second.stderr
    with daemon.client() as client:
        assert client.health()


def test_killed_daemon_starts_again(make: Any) -> None:
    """After kill -9 the next start serves, on the same socket, and stale folders are gone."""
    first: Daemon = make().start()
    first.kill()
    assert first.home.socket("daemon").exists()
    second: Daemon = make().start()
    with second.client() as client:
        assert client.run(Text("again"), temperature=0, max_tokens=2).usage.completion_tokens == 2
    assert second.process is not None
    assert int(second.home.pid_file("daemon").read_text()) == second.process.pid
    assert len(list(second.home.tmp_dir.iterdir())) == 1
    assert second.stop() == 0
    assert not second.home.pid_file("daemon").exists()
    assert not list(second.home.tmp_dir.iterdir())
    assert not second.home.socket("daemon").exists()


def test_sigterm_lets_a_running_request_finish(make: Any) -> None:
    """While it drains the daemon finishes what runs, and refuses what is new with DRAINING."""
    daemon: Daemon = make().start()
    with daemon.client() as client, daemon.client() as late:
        stream = client.generate(Text("go on"), max_tokens=200, ignore_eos=True)
        for event in stream:
            if isinstance(event, Delta):
                break
        assert late.health()
        assert daemon.process is not None
        daemon.process.terminate()
        wait_until(lambda: not late.health())
        with pytest.raises(OverloadedError) as refused:
            late.run(Text("new"), max_tokens=1)
        assert refused.value.reason == "DRAINING"
        *_, last = stream
        assert isinstance(last, Finished)
        assert last.reason == FinishReason.LENGTH
        assert last.usage.completion_tokens == 200
    assert daemon.process.wait(10) == 0


def test_sigterm_tells_who_takes_too_long(make: Any) -> None:
    """Past the limit a running request is told that it was drained, and the daemon exits."""
    daemon: Daemon = make("--drain-limit-s", "0.3").start()
    with daemon.client() as client:
        stream = client.generate(Text("endless"), max_tokens=50_000, ignore_eos=True)
        next(stream)
        began_s = time.monotonic()
        assert daemon.process is not None
        threading.Timer(0.1, daemon.process.terminate).start()
        with pytest.raises(OverloadedError) as told:
            list(stream)
        assert told.value.reason == "DRAINED"
        assert daemon.process.wait(10) == 0
        assert time.monotonic() - began_s < 5


def test_long_prompts_hold_up_neither_requests_nor_the_end(make: Any) -> None:
    """Beside megabytes that are encoded a short request is answered, and SIGTERM ends it all."""
    daemon: Daemon = make("--drain-limit-s", "0.3").start()
    words = " ".join(f"{i:x} 字" for i in range(700_000))  # some 7 MB
    with ThreadPoolExecutor(6) as pool, daemon.client() as client:

        def give_up(_: int) -> None:
            with daemon.client() as patient, pytest.raises(Ds4Error):
                patient.run(Text(words), max_tokens=1, timeout_s=0.5)

        long = [pool.submit(give_up, i) for i in range(6)]
        time.sleep(0.3)
        assert client.run(Text("hi"), max_tokens=1, timeout_s=3).usage.completion_tokens == 1
        assert daemon.process is not None
        daemon.process.terminate()
        assert daemon.process.wait(6) == 0
        for one in long:
            one.result()


def test_drain_by_call_stops_the_process(make: Any) -> None:
    """Admin.Drain with stop drains as SIGTERM does, answers, and the process leaves with 0."""
    from ds4.v1 import admin_pb2, admin_pb2_grpc

    daemon: Daemon = make().start()
    with daemon.client() as client, daemon.channel() as channel:
        stream = client.generate(Text("endless"), max_tokens=50_000, ignore_eos=True)
        next(stream)
        drain = admin_pb2_grpc.AdminStub(channel).Drain
        answer = drain(admin_pb2.DrainRequest(limit_ms=50, stop=True), timeout=10)
        assert (answer.finished, answer.drained) == (0, 1)
    assert daemon.process is not None
    assert daemon.process.wait(10) == 0


def test_without_a_model_the_embedded_one_serves_and_says_so(home: Path) -> None:
    """No model named: the one in the package serves, and log and status say which it is."""
    daemon = Daemon(home)
    try:
        model = daemon.start().status().model
        assert model.name == embedded.NAME
        assert "not DeepSeek's weights" in model.name
        assert Path(model.path) == embedded.path()
        assert "embedded model used" in daemon.log.read_text()
        with daemon.client() as client:
            assert client.run("Once upon a time", max_tokens=1).usage.completion_tokens == 1
        assert daemon.stop() == 0
    finally:
        daemon.kill()


def test_release_layout_serves(make: Any, models: standin.StandIn) -> None:
    """A folder in the layout of the released checkpoint serves as a GGUF file does."""
    daemon: Daemon = make(model=models.release).start()
    assert daemon.status().model.file_format == "safetensors"
    with daemon.client() as client:
        assert client.run(Text("x"), temperature=0, max_tokens=3).usage.completion_tokens == 3


def test_symlinked_run_directory_is_refused(home: Path) -> None:
    """A run directory that is a symbolic link is refused before anything is bound."""
    elsewhere = home / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (home / "run").symlink_to(elsewhere)
    refused(Daemon(home), "NOT_A_DIRECTORY")
    assert not list(elsewhere.iterdir())


def test_open_run_directory_is_refused(home: Path) -> None:
    """A run directory that others may read is refused, with the command that helps."""
    (home / "run").mkdir()
    (home / "run").chmod(0o755)
    assert "chmod 700" in refused(Daemon(home), "NOT_PRIVATE")


BAD_SETTINGS = {
    "flag": (("--chunk-tokens", "0"), "", {}, "--chunk-tokens"),
    "not a number": (("--max-running", "many"), "", {}, "--max-running"),
    "endless": (("--kv-deadline-s", "inf"), "", {}, "3600"),
    "device": (("--device", "abacus"), "", {}, "--device"),
    "type": (("--device", "cpu", "--dtype", "bf16"), "", {}, "f32"),
    "tiny temperature": ((), "", {"DS4_TEMPERATURE": "1e-9"}, "temperature"),
    "variable": ((), "", {"DS4_TOP_P": "7"}, "DS4_TOP_P"),
    "misspelt variable": ((), "", {"DS4_MODLE": "x"}, "DS4_MODEL"),
    "log file": (("--log-file", "/nowhere/log"), "", {}, "/nowhere/log"),
    "file value": ((), "temperature = 'hot'", {}, "config.toml"),
    "file key": ((), "chunk_toknes = 3", {}, "chunk_toknes"),
    "file": ((), "this is not toml", {}, "config.toml"),
    "table as a flag": (("--clients", "bot=2"), "", {}, "--clients"),
    "table's key": ((), "[clients.bot]\nwieght = 2", {}, "clients"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_leave_with_78(home: Path, models: standin.StandIn, case: str) -> None:
    """A setting that cannot be used is named with its origin before a socket is bound."""
    flags, file, variables, named = BAD_SETTINGS[case]
    if file:
        (home / "config.toml").write_text(file)
    daemon = Daemon(home, models.gguf, *flags)
    assert named in refused(daemon, "", variables)


def test_settings_come_from_file_variable_and_flag(home: Path, models: standin.StandIn) -> None:
    """A flag wins over a variable, a variable over the file, the file over the default."""
    (home / "config.toml").write_text(
        f"model = '{models.gguf}'\nmax_running = 3\nmax_waiting = 30\nchunk_tokens = 64\n"
    )
    daemon = Daemon(home, None, "--max-running", "5")
    with pytest.MonkeyPatch.context() as patch:
        variables = daemon.environment | {"DS4_MAX_RUNNING": "4", "DS4_MAX_WAITING": "40"}
        patch.setattr(Daemon, "environment", variables)
        try:
            engine = daemon.start().status().engine
        finally:
            daemon.kill()
    assert (engine.max_running, engine.max_waiting) == (5, 40)


def test_settings_are_documented() -> None:
    """Each setting has its line in docs/settings.md, with the default that holds."""
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
    lines = text.split("## ds4-daemon")[1].split("## ds4-kvcache")[0].splitlines()
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}` "
        assert any(line.startswith(f"| `{name}` | {default}| ") for line in lines), name
    assert sum(line.startswith("| `") for line in lines) == len(Settings.model_fields)


def test_unknown_flag_leaves_with_2(home: Path) -> None:
    """A flag that does not exist is a usage error, as every command has it."""
    assert Daemon(home, None, "--no-such-flag").run().returncode == 2


def bad_models(folder: Path, models: standin.StandIn) -> dict[str, Path]:
    cut, foreign = folder / "cut.gguf", folder / "foreign.gguf"
    cut.write_bytes(models.gguf.read_bytes()[:5_000_000])
    foreign.write_bytes(os.urandom(4096))
    empty = folder / "empty"
    empty.mkdir()
    return {"missing": folder / "none.gguf", "cut": cut, "foreign": foreign, "empty": empty}


def test_context_beyond_the_model_leaves_with_78(home: Path, models: standin.StandIn) -> None:
    """A context longer than the model's is refused, not cut."""
    refused(Daemon(home, models.gguf, "--context-tokens", "70000"), "CONTEXT_TOO_LONG")


@pytest.mark.parametrize("case", ["missing", "cut", "foreign", "empty"])
def test_bad_models_leave_with_78(
    home: Path, models: standin.StandIn, tmp_path: Path, case: str
) -> None:
    """A model that is missing, cut off or no model is named before a socket is bound."""
    refused(Daemon(home, bad_models(tmp_path, models)[case]), "")


def refused(daemon: Daemon, reason: str, variables: dict[str, str] | None = None) -> str:
    """Run to the end: exit code 78, reason and hint on stderr, no traceback, no socket."""
    command = daemon._command
    ended = subprocess.run(
        command,
        env=daemon.environment | (variables or {}),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 78, ended.stderr
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) >= 2
    assert not daemon.home.socket("daemon").exists()
    return ended.stderr


def wait_until(true: Any, limit_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
