"""`fluxserve serve`: bind, greet, run the node until a signal."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from models.arguments import UnknownModelError, resolve_all
from models.errors import LoadError
from models.first_look import first_look
from models.offers import check_offers, offered, spelled_out
from server.cli.failures import ENVIRONMENT, USAGE, CommandError
from server.cli.log_lines import log_to
from server.cli.options import Config, DataDir, Tuning, check_tuning, settings_from
from server.cli.output import PatientWriter
from server.http import tls
from server.http.names import FAL_HOSTS
from server.settings import Settings
from server.workers.cluster.address import unusable
from server.workers.devices import certainly_absent, count_gpus, devices, groups

MAX_FILES = 65_536


def serve(
    host: Annotated[
        str | None,
        typer.Option(help="Listen here; other than loopback needs a key.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Plain HTTP; 0 takes a free port.", show_default="8000")] = None,
    tls_port: Annotated[int | None, typer.Option(help="HTTPS; 0 turns it off.", show_default="8443")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Your own certificate chain (PEM), instead of the local authority's.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM, no password).")] = None,
    data_dir: DataDir = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="postgresql://... of a database that several nodes share.", show_default="a file in the data folder"
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Name, folder, file or Hugging Face id; repeatable.", show_default="flux-shapes"),
    ] = None,
    transformer: Annotated[str | None, typer.Option(help="A single file in place of the model's transformer.")] = None,
    model_dir: Annotated[
        list[str] | None, typer.Option(help="Folder of single files, such as ComfyUI's models; repeatable.")
    ] = None,
    models_on_demand: Annotated[
        list[str] | None,
        typer.Option(help="A model that the first request for it loads; here: all that this machine has; repeatable."),
    ] = None,
    fetch_on_demand: Annotated[
        bool | None, typer.Option("--fetch-on-demand", help="Let a request download a model on demand.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, or a list such as cuda:0,1.", show_default="auto")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Ray cluster that places workers: auto, HOST:PORT or ray://HOST:PORT.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="How many in the cluster: N or MIN-MAX.", show_default="1")
    ] = None,
    worker_cpus: Annotated[
        float | None, typer.Option(help="CPUs that each worker asks the cluster for.", show_default="1")
    ] = None,
    worker_host: Annotated[
        str | None, typer.Option(help="Our address for workers of the cluster.", show_default="found")
    ] = None,
    worker_port: Annotated[
        int | None, typer.Option(help="Where they connect; 0 takes a free port.", show_default="0")
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(help="Devices that share out the steps of one worker: 2, 4 or 8.", show_default="1"),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.", show_default="auto")] = None,
    quantization: Annotated[str | None, typer.Option(help="none or fp8 (needs a GPU).", show_default="none")] = None,
    acceleration: Annotated[
        str | None, typer.Option(help="The most that requests get: none, regular, high or max.", show_default="max")
    ] = None,
    offload: Annotated[
        str | None,
        typer.Option(help="text, text+modulation or text+blocks: what waits in host memory.", show_default="none"),
    ] = None,
    tuning: Annotated[str | None, Tuning] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="Weights a worker holds at once; beyond it the least recently used model is unloaded."),
    ] = None,
    no_mmap: Annotated[
        bool | None, typer.Option("--no-mmap", help="Read files of weights in order instead of mapping them.")
    ] = None,
    unload_after: Annotated[
        float | None, typer.Option(help="Seconds without a request after which weights leave the device.")
    ] = None,
    warmup: Annotated[
        str | None,
        typer.Option(
            help="Draw the preset sizes before saying ready: auto (on a GPU), none, full.", show_default="auto"
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="A key that admits, or @FILE with one a line; repeatable.")
    ] = None,
    public_url: Annotated[str | None, typer.Option(help="What clients call this server behind a proxy.")] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(help="ID=ID: the second endpoint answers under the first id, too; repeatable."),
    ] = None,
    allow_private_cidr: Annotated[
        list[str] | None, typer.Option(help="Network that fetches and webhooks may reach; repeatable.")
    ] = None,
    allow_insecure_bind: Annotated[
        bool | None, typer.Option("--allow-insecure-bind", help="Listen on other addresses without a key.")
    ] = None,
    adapter_dir: Annotated[Path | None, typer.Option(help="Folder of LoRAs that requests may name.")] = None,
    adapter_hub: Annotated[
        bool | None, typer.Option("--adapter-hub", help="Let requests name LoRAs of the Hugging Face hub: owner/repo.")
    ] = None,
    max_adapter_mb: Annotated[int | None, typer.Option(help="Largest LoRA file, in MiB.", show_default="1024")] = None,
    adapter_store_gb: Annotated[
        float | None, typer.Option(help="LoRAs kept on disk, in GB.", show_default="10")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Waiting requests beyond this get 429.", show_default="10000")
    ] = None,
    max_queue_mb: Annotated[
        int | None,
        typer.Option(help="MB that waiting requests with pictures in them take; more get 429.", show_default="4096"),
    ] = None,
    key_running: Annotated[
        int | None, typer.Option(help="Requests of one key that workers hold at once; more wait.")
    ] = None,
    key_waiting: Annotated[int | None, typer.Option(help="Waiting requests of one key; one more gets 429.")] = None,
    key_per_minute: Annotated[int | None, typer.Option(help="Submits of one key in a minute; more get 429.")] = None,
    key_storage_mb: Annotated[int | None, typer.Option(help="MB of results and uploads that one key keeps.")] = None,
    retention_s: Annotated[
        float | None, typer.Option(help="Seconds that results are kept.", show_default="7 days")
    ] = None,
    keep_gb: Annotated[
        float | None, typer.Option(help="GB of results and uploads that are kept; the oldest go first.")
    ] = None,
    signed_urls_s: Annotated[
        float | None, typer.Option(help="Sign addresses of files; they end after so many seconds.")
    ] = None,
    objects: Annotated[
        str | None,
        typer.Option(help="Keep results and uploads in S3: s3://BUCKET/PREFIX.", show_default="the data folder"),
    ] = None,
    s3_endpoint: Annotated[str | None, typer.Option(help="An S3 service other than AWS: https://HOST:PORT.")] = None,
    s3_redirect: Annotated[
        bool | None, typer.Option("--s3-redirect", help="Send clients to S3 for files, by addresses that soon end.")
    ] = None,
    hang_s: Annotated[
        float | None, typer.Option(help="A worker silent for so many seconds is restarted.", show_default="120")
    ] = None,
    c2pa_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain (PEM) that signs every picture file, by C2PA.")
    ] = None,
    c2pa_key: Annotated[Path | None, typer.Option(help="Its private key (PEM, no password).")] = None,
    prices: Annotated[
        Path | None, typer.Option(help="TOML file: what a megapixel costs, by endpoint.", show_default="nothing")
    ] = None,
    keep_alive_s: Annotated[
        int | None,
        typer.Option(help="Seconds until an idle connection is closed; more than your proxy's.", show_default="75"),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="text, or json: one object a line.", show_default="text")
    ] = None,
    embed_parameters: Annotated[
        bool | None, typer.Option("--embed-parameters", help="Write prompt and seed into picture files, too.")
    ] = None,
    expander: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server that writes prompts out: http://127.0.0.1:11434/v1.")
    ] = None,
    expander_model: Annotated[str | None, typer.Option(help="Its model.", show_default="the first it lists")] = None,
    expander_key: Annotated[str | None, typer.Option(help="Its key, or @FILE with it.")] = None,
    expander_timeout_s: Annotated[
        float | None, typer.Option(help="Seconds after which a prompt is used as written.", show_default="20")
    ] = None,
    reject_late: Annotated[
        bool | None, typer.Option("--reject-late", help="Refuse at once what cannot start within its own limits.")
    ] = None,
    result_cache: Annotated[
        bool | None, typer.Option("--result-cache", help="Answer a repeated request with a seed from its pictures.")
    ] = None,
    config: Config = None,
) -> None:
    """Serve the fal model API until Ctrl-C."""
    settings = settings_from(
        config,
        host=host,
        port=port,
        tls_port=tls_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        data_dir=data_dir,
        objects=objects,
        s3_endpoint=s3_endpoint,
        s3_redirect=s3_redirect,
        store=store,
        models=model,
        transformer=transformer,
        model_dirs=model_dir,
        models_on_demand=models_on_demand,
        fetch_on_demand=fetch_on_demand,
        device=device,
        cluster=cluster,
        workers=workers,
        worker_cpus=worker_cpus,
        worker_host=worker_host,
        worker_port=worker_port,
        parallel=parallel,
        dtype=dtype,
        quantization=quantization,
        acceleration=acceleration,
        offload=offload,
        tuning=tuning,
        memory_gb=memory_gb,
        no_mmap=no_mmap,
        unload_after=unload_after,
        warmup=warmup,
        api_keys=api_key,
        public_url=public_url,
        aliases=alias,
        allow_private_cidrs=allow_private_cidr,
        allow_insecure_bind=allow_insecure_bind,
        adapter_dir=adapter_dir,
        adapter_hub=adapter_hub,
        max_adapter_mb=max_adapter_mb,
        adapter_store_gb=adapter_store_gb,
        max_queue=max_queue,
        max_queue_mb=max_queue_mb,
        key_running=key_running,
        key_waiting=key_waiting,
        key_per_minute=key_per_minute,
        key_storage_mb=key_storage_mb,
        retention_s=retention_s,
        keep_gb=keep_gb,
        signed_urls_s=signed_urls_s,
        hang_s=hang_s,
        c2pa_cert=c2pa_cert,
        c2pa_key=c2pa_key,
        prices=prices,
        keep_alive_s=keep_alive_s,
        log_format=log_format,
        embed_parameters=embed_parameters,
        reject_late=reject_late,
        result_cache=result_cache,
        expander=expander,
        expander_model=expander_model,
        expander_key=expander_key,
        expander_timeout_s=expander_timeout_s,
    )
    _check_models(settings)
    _check_device(settings)
    check_tuning(settings.tuning)
    _raise_file_limit()
    out, err = PatientWriter(sys.stdout), PatientWriter(sys.stderr)
    log_to(err, settings.log_format)
    try:
        _run(settings, out)
    finally:
        out.finish()
        err.finish()


def _raise_file_limit() -> None:
    """Let this process have as many files and connections open as it may: the usual 1,024 are few callers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_models(settings: Settings) -> None:
    """Before anything is opened: a worker would say the same some seconds later, and the server would stay unready."""
    try:
        specs = resolve_all(settings.model_arguments, settings.model_folders)
        for spec in specs:
            first_look(spec)
        on_demand = spelled_out(settings.models_on_demand, specs)
        folders, fetches = settings.model_folders, settings.fetch_on_demand
        check_offers(offered(settings.model_arguments, on_demand, folders, fetches))
    except UnknownModelError as exc:
        raise CommandError(str(exc), USAGE) from exc
    except LoadError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc


def _check_device(settings: Settings) -> None:
    """A worker on a device that is not there would never be ready."""
    if settings.cluster is not None:
        if why := unusable(settings.cluster):
            raise CommandError(f"--cluster {settings.cluster}: {why}", ENVIRONMENT)
        return
    gpus = count_gpus()
    if absent := certainly_absent(settings.device, gpus):
        raise CommandError(f"--device {settings.device}: {absent} is not here; {_gpus_here(gpus)}", ENVIRONMENT)
    try:
        groups(devices(settings.device, gpus), settings.parallel)
    except ValueError as exc:
        raise CommandError(str(exc), USAGE) from exc


def _gpus_here(gpus: int) -> str:
    if not gpus:
        return "no GPU is visible on this machine (look at nvidia-smi and CUDA_VISIBLE_DEVICES), or use --device auto"
    return f"{gpus} GPUs are visible" if gpus > 1 else "1 GPU is visible"


def _tls_names(settings: Settings) -> list[str]:
    public_host = urlsplit(settings.public_url).hostname if settings.public_url else None
    return tls.served_names(settings.host, public_host, also=FAL_HOSTS)


def _tunnel_ends(settings: Settings) -> dict[str, frozenset[int]]:
    """Where CONNECT may lead: fal's names, and the one that the operator gave us, under which files are handed out."""
    public = urlsplit(settings.public_url or "")
    own = {public.hostname: frozenset({public.port or 443})} if public.scheme == "https" and public.hostname else {}
    return own | dict.fromkeys(FAL_HOSTS, frozenset({443}))


def _certificate(settings: Settings) -> Callable[[], tls.TlsFiles]:
    """Makes what is missing or old of the certificate, and says where it lies. Raises: tls.TlsError, OSError."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        return partial(tls.own_files, settings.data_dir, settings.tls_cert, settings.tls_key)
    return partial(tls.ensure, settings.data_dir, _tls_names(settings))


def _run(settings: Settings, out: PatientWriter) -> None:
    from server.http import serving

    try:
        listeners = serving.listen(settings.host, settings.port, settings.tls_port)
    except serving.PortInUseError as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    except OSError as exc:
        raise CommandError(f"cannot listen on --host {settings.host}: {exc.strerror or exc}", ENVIRONMENT) from exc
    # These import FastAPI and the whole node: only the command that serves pays for them, once it has its ports.
    from server.api.endpoints import AliasError, add_aliases
    from server.api.prices import PricesError
    from server.app import create_app
    from server.cli.greeting import Greeting
    from server.files.choice import ObjectsError
    from server.files.content_credentials import CredentialsError
    from server.files.private import DamagedSecretError
    from server.jobs.store.errors import StoreError
    from server.node import Node
    from server.workers.threads import TooFewThreadsError

    try:
        add_aliases(settings.aliases)
        # First of all the node, which takes the data folder for itself: another's files are not touched.
        node = Node.from_settings(settings)
        certificate = _certificate(settings)
        files = certificate() if listeners.tls else None
        app = create_app(node, listeners.port)
    except (StoreError, tls.TlsError, DamagedSecretError, TooFewThreadsError) as exc:
        raise CommandError(str(exc), ENVIRONMENT) from exc
    except AliasError as exc:
        raise CommandError(f"--alias {exc}", USAGE) from exc
    except (CredentialsError, ObjectsError) as exc:
        raise CommandError(str(exc), USAGE) from exc
    except PricesError as exc:
        raise CommandError(f"--prices {exc}", USAGE) from exc
    except OSError as exc:
        reason = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror or str(exc)
        raise CommandError(f"cannot use --data-dir {settings.data_dir}: {reason}", ENVIRONMENT) from exc
    else:
        greeting = Greeting(settings, listeners.port, listeners.tls_port, out)
        greet = partial(greeting.follow, node.health)
        ends, idle_s = _tunnel_ends(settings), settings.keep_alive_s
        serving.run(app, listeners, files, greet, ends, certificate, node.announce_stop, idle_s)
    finally:
        listeners.close()
