"""ds4-daemon, from top to bottom: what it is made of and in which order that comes to life.

    settings -> lock and private folders -> model files -> text -> engine -> socket -> weights
    -> one decoded token -> SERVING -> ... SIGTERM -> drain -> gone

Everything that can be wrong with the configuration is found before a socket is bound. Exit codes:
0 stopped, 1 failed, 2 unknown flag, 78 configuration or model that cannot be used.
"""

import asyncio
import os
import sys
from pathlib import Path

import structlog
from ds4_runtime import log
from ds4_runtime.address import Home
from ds4_runtime.errors import SetupError
from ds4_runtime.lifecycle import Tenancy, claim, stop_signals
from ds4_runtime.settings import load

from ds4_daemon.errors import ConfigError, DaemonError, ModelFileError, RequestError
from ds4_daemon.settings import Settings

EXIT_FAILED, EXIT_CONFIG = 1, 78
# For the last events to reach clients once every request has ended.
_FAREWELL_S = 2.0
# For what waits to be saved: 64 MB at most.
_SAVING_S = 5.0

_log = structlog.get_logger()


def main(arguments: list[str] | None = None) -> int:
    """The command `ds4-daemon`."""
    # Read when NumPy is imported, which is later. Decode gains nothing from a second thread of
    # OpenBLAS and prefill 9 % on two cores; where another program wants a core, threads that wait
    # for each other make decode three to eight times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        settings = load(Settings, arguments)
        configure_log(settings)
        with claim(Home.find(), "daemon") as tenancy:  # sets TMPDIR: MLX is imported after it
            return asyncio.run(serve(settings, tenancy))
    except (DaemonError, SetupError) as error:
        print(f"ds4-daemon: {error.message} [{error.reason}]", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        unusable = isinstance(error, ConfigError | ModelFileError | SetupError)
        return EXIT_CONFIG if unusable else EXIT_FAILED


def configure_log(settings: Settings) -> None:
    """Logs where the settings say. Raises ConfigError."""
    try:
        log.configure("ds4-daemon", level=settings.log_level, file=settings.log_file)
    except OSError as error:
        raise ConfigError(
            "LOG_FILE_NOT_USABLE",
            f"the log file {settings.log_file} cannot be written: {error.strerror}",
            "name another with --log-file, or leave it out",
        ) from error


async def serve(settings: Settings, tenancy: Tenancy) -> int:
    """Serve until a signal, an Admin.Drain that stops, or the engine's death; the exit code."""
    from ds4_runtime.host import host
    from ds4_runtime.server import Server

    from ds4_daemon.engine.loop import Drained, Engine
    from ds4_daemon.engine.memory import Memory
    from ds4_daemon.engine.prefix import Prefixes
    from ds4_daemon.engine.reuse import Terms, make_prefixes
    from ds4_daemon.engine.watchdog import watch
    from ds4_daemon.journal.folder import Journal
    from ds4_daemon.model.files import open_model
    from ds4_daemon.model.load import check, load_network
    from ds4_daemon.model.network import Network
    from ds4_daemon.rpc.accept import Acceptance
    from ds4_daemon.rpc.admin import Admin
    from ds4_daemon.rpc.inference import Inference
    from ds4_daemon.rpc.kept import KeptRequests
    from ds4_daemon.rpc.model_status import model_status
    from ds4_daemon.rpc.request import Requests
    from ds4_daemon.rpc.resume import Resumption
    from ds4_daemon.rpc.services import add_services
    from ds4_daemon.rpc.sessions import Sessions
    from ds4_daemon.rpc.status_codes import STATUS_CODES
    from ds4_daemon.sched.ledger import ClientTerms, Ledger
    from ds4_daemon.sched.policy import Limits
    from ds4_daemon.sched.sampling import Sampling
    from ds4_daemon.text.chat import APRIL, JULY
    from ds4_daemon.text.tokenizer import Tokenizer

    # The model, as far as its headers tell, and its text.
    name, path = choose_model(settings)
    files = open_model(path)
    device = check(files, device=settings.device, dtype=settings.dtype, rounding=settings.rounding)
    tokenizer = Tokenizer.load(files.tokenizer_source)

    # The engine. Its thread does all work of the model, loading included.
    def load() -> Network:
        return load_network(
            files,
            device=settings.device,
            dtype=settings.dtype,
            rounding=settings.rounding,
            dequantized_budget_bytes=settings.dequantized_budget_bytes,
        )

    def reuse(network: Network, engine: Engine) -> Prefixes:
        return make_prefixes(network, engine, files, name, tenancy.home, terms)

    terms = Terms(
        settings.kv_cache,
        settings.live_sessions_bytes,
        settings.kv_min_saving_s,
        settings.kv_deadline_s,
        settings.kv_canary_every,
    )
    chunk_tokens = settings.chunk_tokens or (256 if device == "cpu" else 512)
    # MLX is used from one thread; NumPy lets go of Python while it computes.
    threads = 2 if device == "cpu" and host().cpu_count > 1 else 1
    limits = Limits(settings.max_running, chunk_tokens, threads)
    others = ClientTerms(1.0, settings.client_max_running, settings.client_max_waiting)
    named = {
        client: ClientTerms(
            own.weight,
            own.max_running or others.max_running,
            others.max_waiting if own.max_waiting is None else own.max_waiting,
        )
        for client, own in settings.clients.items()
    }
    engine = Engine(
        load,
        limits,
        settings.max_waiting,
        reuse,
        Ledger(named, others),
        Memory(settings.sessions_bytes),
    )

    # The services, on a socket that says NOT_SERVING until there is a model.
    server = Server(tenancy, STATUS_CODES)
    stopped = asyncio.Event()

    async def drain(limit_s: float | None) -> Drained:
        await server.set_serving(False)
        return await engine.drain(settings.drain_limit_s if limit_s is None else limit_s)

    context_tokens = settings.context_tokens or files.config.max_position_embeddings
    if context_tokens > files.config.max_position_embeddings:
        raise ConfigError(
            "CONTEXT_TOO_LONG",
            f"context_tokens is {context_tokens}, the model has "
            f"{files.config.max_position_embeddings}",
            "set no more than the model has, or leave it out",
        )
    try:
        defaults = Sampling(settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    except RequestError as error:  # what no request may ask for is no default either
        raise ConfigError(error.reason, error.message, error.hint) from error
    ladder = JULY if files.config.is_0731 else APRIL
    requests = Requests(tokenizer, files.config.vocab_size, context_tokens, defaults, ladder)
    facts = model_status(name, path, files, context_tokens)
    admin = Admin(engine, facts, str(tenancy.home.path), drain, stopped.set)
    sessions = Sessions(engine, tokenizer)

    # What earlier requests were promised: known before a client asks, run once the engine runs.
    journal = Journal(tenancy.home.journal_dir, settings.journal_bytes)
    kept = KeptRequests(settings.keep_finished_s, settings.keep_finished_bytes)
    acceptance = Acceptance(engine, tokenizer, journal, kept)
    identity = f"{name} {facts.parameters} {facts.file_bytes}"
    resumption = Resumption(engine, requests, acceptance, journal, identity)
    await resumption.restore()

    inference = Inference(engine, requests, acceptance, resumption)
    add_services(server, inference, admin, sessions)
    await server.start()

    # Weights, one decoded token, and then it serves until something ends it.
    with stop_signals() as signalled:
        starting = asyncio.create_task(engine.start(tokenizer.bos_id))
        ends = [asyncio.create_task(e.wait()) for e in (signalled, stopped, engine.died)]
        try:
            await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting  # raises what loading raised
                resumption.start()
                await server.set_serving(True)
                _log.info("model served", model=name, socket=str(server.socket))
                watching = asyncio.create_task(
                    watch(engine, server.set_serving, settings.watchdog_s)
                )
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                watching.cancel()
            drained = await drain(None)
            _log.info("requests drained", finished=drained.finished, told=drained.drained)
        finally:
            for task in (starting, *ends):
                task.cancel()
            await server.stop(_FAREWELL_S)
            await acceptance.close(_FAREWELL_S)
            await engine.close(_FAREWELL_S)
            if engine.prefixes is not None:
                await asyncio.to_thread(engine.prefixes.close_link, _SAVING_S)
    return EXIT_FAILED if engine.failure is not None else 0


def choose_model(settings: Settings) -> tuple[str, Path]:
    """Name and path of the model: the one that is set, else the embedded one."""
    if settings.model is not None:
        path = settings.model.expanduser().absolute()
        return path.stem if path.suffix == ".gguf" else path.name, path
    from ds4_daemon import embedded

    path = embedded.path()
    _log.info("embedded model used", why="no model is set", path=str(path))
    return embedded.NAME, path


if __name__ == "__main__":
    sys.exit(main())
