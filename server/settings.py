"""What the operator decides: flags over FLUXSERVE_* environment over a TOML file over defaults."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

VERSION = "0.1.0"

CHECKOUT = Path(__file__).resolve().parent.parent
"""Where our packages lie: a checkout, or the `site-packages` that a wheel was installed into."""

PREFIX = "FLUXSERVE_"
OTHER_VARIABLES = frozenset({"FLUXSERVE_CONFIG", "FLUXSERVE_TEST_MODEL"})
"""Variables with our prefix that are no fields: one names the file, one is read by the tests."""

# https://kubernetes.io/docs/concepts/containers/container-environment/: host and port of every Service, by its name.
_OF_A_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
# https://docs.docker.com/engine/network/links/: a linked container's name and its own variables.
_OF_A_LINK = re.compile(r"FLUXSERVE_(NAME|ENV_\w+)$")

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html; a prefix of plain path segments.
_BUCKET_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w-][\w.-]*)*/?", re.ASCII)

WILDCARD_HOSTS = frozenset({"", "0.0.0.0", "::"})

Words = Annotated[tuple[str, ...], NoDecode]
"""A list that the environment may give as one comma-separated value."""


def default_data_dir() -> Path:
    """One place whatever the working folder, so that commands find a running server's files: beside the code in a
    checkout, else where the XDG base directory specification keeps a user's data."""
    if (CHECKOUT / "pyproject.toml").is_file():
        return CHECKOUT / "data"
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "fluxserve"


class SettingsError(Exception):
    """The settings cannot be used; the message is one sentence per fault, in the operator's words."""


class Settings(BaseSettings):
    """One server's settings, validated once at start; imports nothing of ours.

    Args:
        host, port: where plain HTTP listens; port 0 takes a free one.
        tls_port: where TLS listens on the same host; 0 turns it off.
        tls_cert, tls_key: an operator's own certificate chain and key (PEM), served in place of the local authority's.
        data_dir: holds the store, pictures and certificates of one node.
        objects: where results and uploads are kept: s3://BUCKET or s3://BUCKET/PREFIX; None for the data folder.
        s3_endpoint: of an S3 service other than AWS. Where its host begins with the bucket's name it is
            asked in the virtual-host style, else by path.
        s3_redirect: clients fetch files from there by addresses that hold for minutes, not through this server.
        store: the address of a PostgreSQL database that several nodes share; None is a file in the data folder.
        models: registry names, folders, files or Hugging Face ids (see `models.arguments`); the first is the default.
        transformer: a single file that takes the place of the transformer of the one model.
        model_dirs: where single files and their companions are sought, for example ComfyUI's models.
        models_on_demand: models as above that the first request for one loads; `here` stands for all known by name
            whose files are on this machine.
        fetch_on_demand: whether such a request may download what is not.
        acceleration: the most that requests get of what they ask for in fal's field of that name.
        offload: what waits in the host's memory until it is used: none, the text encoders, or
            modulation too.
        memory_gb: weights one worker holds at once, in GB; beyond it the model used least recently is unloaded.
        unload_after: seconds without a request after which a worker frees its device; None never does.
        tuning: switches for speed as `models.tuning.parse_tuning` reads them; empty leaves them to the device.
        device: auto, cpu, cuda, or a list (cuda:0,1 or cpu,cpu): one worker each.
        cluster: a Ray cluster that places workers: auto, HOST:PORT or ray://HOST:PORT; None: this machine's devices.
        workers: how many in the cluster: N or MIN-MAX.
        worker_cpus: CPUs that each asks the cluster for, besides a GPU where there are any.
        worker_host, worker_port: where workers of the cluster connect; None finds the address, 0 takes a free port.
        parallel: devices that share out every step of one worker (1, 2, 4 or 8), for single large pictures.
        api_keys: any of these admits; none leaves the server open. `@FILE` reads one key a line.
        public_url: what clients call this server behind a reverse proxy; None follows each request.
        aliases: endpoint ids under which others answer, each as ID=ID; shown as substitutes.
        allow_private_cidrs: networks that picture fetches and webhooks may reach besides public addresses.
        adapter_dir: a folder whose LoRAs requests may name; None takes the embedded model's own, if that is served.
        adapter_hub: whether requests may name LoRAs of the Hugging Face hub as owner/repo.
        max_adapter_mb: of one LoRA file, in MiB.
        adapter_store_gb: LoRAs kept on disk, in GB; beyond it the one used least recently goes.
        max_queue: waiting requests beyond this are refused with 429.
        max_queue_mb: MB that their large inputs take; one key's may take as much as is left free.
        key_running, key_waiting, key_per_minute, key_storage_mb: what each key may take unless it says otherwise:
            requests in workers at once (more wait), waiting ones, submits a minute, MB of kept files; None is no limit.
        retention_s: how long finished requests and their pictures are kept, in seconds.
        keep_gb: results and uploads in GB; beyond it the oldest go before that time.
        signed_urls_s: addresses of files are signed and hold for so many seconds; None: as long as the file.
        warmup: what a worker draws before it is ready: auto (nothing to speak of on a CPU), none, or full.
        hang_s: a worker silent for this many seconds is killed and restarted.
        c2pa_cert, c2pa_key: the operator's certificate chain and key (PEM) that sign every picture file.
        prices: a TOML file with what a megapixel costs by endpoint; None for nothing.
        keep_alive_s: an idle connection is closed after so many seconds. Longer than what proxies keep one to us
            (nginx and Amazon's load balancers: 60), else they would send a request into one that we are closing.
        expander: an OpenAI-compatible server that writes prompts out for requests that ask for it; may lie inside.
        expander_model, expander_key: what it is asked for, and with; the first it lists, and none.
        expander_timeout_s: after so many seconds the prompt is used as written.
        result_cache: a request that would draw what is stored is answered from it.
        reject_late: a request whose own limits cannot be kept is refused with 429 at once, and does not wait in vain.
        log_format: the server's own log: lines for people, or one JSON object a line.
        embed_parameters: prompt and seed go into picture files, too, beside model, endpoint and request id.
    """

    # A variable that compose files and charts leave empty is one that was not given.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tls_port: int = Field(8443, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    data_dir: Path = Field(default_factory=default_data_dir)
    objects: str | None = None
    s3_endpoint: str | None = None
    s3_redirect: bool = False
    store: str | None = Field(None, repr=False)
    models: Words = ("flux-shapes",)
    transformer: str | None = None
    model_dirs: Words = ()
    models_on_demand: Words = ()
    fetch_on_demand: bool = False
    device: str = Field("auto", pattern=r"^(auto|cpu(,cpu)*|cuda(:\d+(,\d+)*)?)$")
    cluster: str | None = Field(None, pattern=r"^(auto|(ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5})$")
    workers: str = Field("1", pattern=r"^[1-9]\d{0,3}(-[1-9]\d{0,3})?$")
    worker_cpus: float = Field(1.0, ge=0)
    worker_host: str | None = None
    worker_port: int = Field(0, ge=0, le=65535)
    parallel: int = 1
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Literal["none", "fp8"] = "none"
    acceleration: Literal["none", "regular", "high", "max"] = "max"
    offload: Literal["none", "text", "text+modulation", "text+blocks"] = "none"
    tuning: str = ""
    memory_gb: float | None = Field(None, gt=0)
    no_mmap: bool = False
    unload_after: float | None = Field(None, gt=0)
    warmup: Literal["auto", "none", "full"] = "auto"
    api_keys: Words = Field((), repr=False)
    public_url: str | None = None
    aliases: Words = ()
    allow_private_cidrs: Words = ()
    allow_insecure_bind: bool = False
    adapter_dir: Path | None = None
    adapter_hub: bool = False
    max_adapter_mb: int = Field(1024, ge=1)
    adapter_store_gb: float = Field(10.0, gt=0)
    max_queue: int = Field(10_000, ge=0)
    max_queue_mb: int = Field(4096, ge=1)
    key_running: int | None = Field(None, ge=1)
    key_waiting: int | None = Field(None, ge=1)
    key_per_minute: int | None = Field(None, ge=1)
    key_storage_mb: int | None = Field(None, ge=1)
    retention_s: float = Field(7 * 86400.0, gt=0)
    keep_gb: float | None = Field(None, gt=0)
    signed_urls_s: float | None = Field(None, ge=1)
    hang_s: float = Field(120.0, gt=0)
    c2pa_cert: Path | None = None
    c2pa_key: Path | None = None
    prices: Path | None = None
    keep_alive_s: int = Field(75, ge=1)
    log_format: Literal["text", "json"] = "text"
    embed_parameters: bool = False
    result_cache: bool = False
    reject_late: bool = False
    expander: str | None = None
    expander_model: str | None = None
    expander_key: str | None = Field(None, repr=False)
    expander_timeout_s: float = Field(20.0, gt=0)

    @field_validator(
        "models", "models_on_demand", "aliases", "model_dirs", "api_keys", "allow_private_cidrs", mode="before"
    )
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(word.strip() for word in value.split(",") if word.strip())

    @field_validator("models")
    @classmethod
    def _need_a_model(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("needs at least one model")
        return value

    @field_validator("parallel")
    @classmethod
    def _check_parallel(cls, value: int) -> int:
        if value not in (1, 2, 4, 8):
            raise ValueError("must be 1, 2, 4 or 8")
        return value

    @field_validator("model_dirs")
    @classmethod
    def _existing_folders(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        missing = [folder for folder in value if not Path(folder).expanduser().is_dir()]
        if missing:
            raise ValueError(f"there is no folder {missing[0]}")
        return tuple(str(Path(folder).expanduser().absolute()) for folder in value)

    @field_validator("api_keys")
    @classmethod
    def _read_key_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        keys = tuple(key for word in value for key in _keys_of(word))
        if not all(key.isprintable() and key.strip() for key in keys):
            raise ValueError("must not be empty, and holds printable characters only")
        return keys

    @field_validator("data_dir", "tls_cert", "tls_key", "c2pa_cert", "c2pa_key", "prices")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("adapter_dir")
    @classmethod
    def _existing_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.expanduser().is_dir():
            raise ValueError("must be a folder that exists")
        return None if value is None else value.expanduser().absolute()

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
        if not is_whole or "@" in parts.netloc or not value.isprintable() or " " in value:
            raise ValueError("must look like https://fal.example.com or http://host:8000/prefix")
        if parts.port == 0:  # reading it raises ValueError beyond 65535
            raise ValueError("its port must be 1 to 65535")
        return value.rstrip("/")

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must look like postgresql://user@host/database")
        return value

    @field_validator("objects")
    @classmethod
    def _check_objects(cls, value: str | None) -> str | None:
        if value is not None and not _BUCKET_URL.fullmatch(value):
            raise ValueError(
                "must look like s3://bucket/prefix; keys belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return value

    @field_validator("s3_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://none")
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.path.strip("/"):
            raise ValueError("must look like https://s3.example.com or http://host:9000, with no key in it")
        return value

    @field_validator("expander")
    @classmethod
    def _check_expander(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://none")
        is_whole = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
        if not is_whole or "@" in parts.netloc or " " in (value or ""):
            raise ValueError("must look like http://127.0.0.1:11434/v1")
        return value

    @field_validator("expander_key")
    @classmethod
    def _read_expander_key(cls, value: str | None) -> str | None:
        return None if value is None else _keys_of(value)[0]

    @field_validator("allow_private_cidrs")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_network(word, strict=False)) for word in value)

    @property
    def model_arguments(self) -> tuple[str, ...]:
        """What `models.arguments.resolve` takes."""
        return self.models if self.transformer is None else (f"{self.models[0]}+{self.transformer}",)

    @property
    def model_folders(self) -> tuple[Path, ...]:
        return tuple(Path(folder) for folder in self.model_dirs)

    @model_validator(mode="after")
    def _one_model_takes_a_transformer(self) -> Settings:
        if self.transformer is not None and len(self.models) != 1:
            raise ValueError("transformer belongs to one model: give several as --model MODEL+FILE")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers in the cluster."""
        low, _, high = self.workers.partition("-")
        return int(low), int(high or low)

    @model_validator(mode="after")
    def _fit_the_cluster(self) -> Settings:
        low, high = self.worker_range
        if low > high:
            raise ValueError(f"--workers {self.workers}: the first number is the smaller one")
        if self.cluster is None:
            given = {"workers", "worker_cpus", "worker_host", "worker_port"} & self.model_fields_set
            if given:
                raise ValueError(f"{flag_of(min(given))} is about a cluster: give --cluster, too, or use --device")
        elif self.device not in ("auto", "cpu", "cuda"):
            raise ValueError("--device with --cluster is auto, cpu or cuda: the cluster picks the devices")
        return self

    @model_validator(mode="after")
    def _refuse_open_doors(self) -> Settings:
        if self.parallel > 1 and self.models_on_demand:
            raise ValueError("--parallel needs every device for every step: leave --models-on-demand out")
        if self.parallel > 1 and self.cluster is not None:
            raise ValueError("--parallel shares steps out over this machine's devices: leave --cluster out")
        if self.port and self.port == self.tls_port:
            raise ValueError(f"--port and --tls-port are both {self.port}; they must differ")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both or neither")
        if self.objects is None and (self.s3_endpoint is not None or self.s3_redirect):
            raise ValueError("--s3-endpoint and --s3-redirect belong to --objects s3://BUCKET")
        if (self.c2pa_cert is None) != (self.c2pa_key is None):
            raise ValueError("--c2pa-cert and --c2pa-key belong together: give both or neither")
        if not (self.is_protected or self.allow_insecure_bind or is_loopback(self.host)):
            raise ValueError(
                f"--host {self.host} lets other machines in and no key protects the server: "
                "make one with `fluxserve keys new`, give --api-key, or say --allow-insecure-bind"
            )
        return self

    @property
    def key_file(self) -> Path:
        """Where issued keys are kept."""
        return self.data_dir / "keys.json"

    @property
    def is_protected(self) -> bool:
        """Whether a key is asked for."""
        return bool(self.api_keys) or self.key_file.exists()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`; names other than localhost count as public."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """The settings from what was typed, the environment, and the file, in this order of strength.

    Args: flags by field name; None means "not given". config: a TOML file with fields as top-level keys.
    Raises: SettingsError.
    """
    source = _file_source(config)

    class FromEverywhere(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            if isinstance(env_settings, EnvSettingsSource):
                env_settings.env_vars = {name: value for name, value in env_settings.env_vars.items() if _is_ours(name)}
            return (init_settings, env_settings, *source)

    _refuse_unknown_variables()
    _refuse_an_empty_key(flags)
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return FromEverywhere(**given)
    except ValidationError as exc:
        raise SettingsError("; ".join(_sentence(error) for error in exc.errors())) from None


def _refuse_unknown_variables() -> None:
    """Raises: SettingsError. A name that is almost right would else leave a server open that was to have a key."""
    known = {PREFIX + field.upper() for field in Settings.model_fields} | OTHER_VARIABLES
    by_flag = {PREFIX + flag_of(field)[2:].replace("-", "_").upper(): field for field in Settings.model_fields}
    for name in sorted(name for name in os.environ if name.upper().startswith(PREFIX) and _is_ours(name)):
        if name.upper() not in known:
            word = name.upper().removeprefix(PREFIX)
            near = difflib.get_close_matches(word, [other.removeprefix(PREFIX) for other in known], 1, cutoff=0.7)
            meant = by_flag.get(name.upper(), near[0] if near else "").upper()
            raise SettingsError(f"{name} is not a setting" + (f"; did you mean {PREFIX}{meant}?" if meant else ""))


def _refuse_an_empty_key(flags: Mapping[str, Any]) -> None:
    """Raises: SettingsError. Who names keys means to have one: a secret that was not there must not open the server."""
    for name in (name for name in os.environ if name.upper() == PREFIX + "API_KEYS"):
        if not flags.get("api_keys") and not os.environ[name].replace(",", " ").strip():
            raise SettingsError(f"{name} is empty: give it a key, or unset it to serve without one")


def _is_ours(name: str) -> bool:
    """Whether a variable is none that Kubernetes makes for a Service of our name, or Docker for a link."""
    value = os.environ.get(name, "") or os.environ.get(name.upper(), "")
    return not (
        _OF_A_SERVICE.search(name.upper())
        or _OF_A_LINK.match(name.upper())
        or (name.upper().endswith("_PORT") and _SERVICE_URL.match(value))
    )


def flag_of(field: str) -> str:
    """The command-line flag of a field: `tls_port` is `--tls-port`, a list's flag is its singular."""
    if field == "aliases":
        return "--alias"
    is_list = field in ("models", "model_dirs", "api_keys", "allow_private_cidrs")
    return "--" + (field.removesuffix("s") if is_list else field).replace("_", "-")


def _keys_of(word: str) -> list[str]:
    if not word.startswith("@"):
        return [word]
    try:
        lines = Path(word[1:]).expanduser().read_text().splitlines()
    except OSError as exc:
        raise ValueError(f"cannot read the key file {word[1:]}: {exc.strerror}") from exc
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ValueError(f"the key file {word[1:]} holds no key")
    return keys


def _file_source(config: Path | None) -> tuple[PydanticBaseSettingsSource, ...]:
    if config is None:
        return ()
    try:
        return (TomlConfigSettingsSource(Settings, toml_file=_readable(config)),)
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"--config {config} is not valid TOML: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise SettingsError(f"--config {config} is not valid TOML: it is not UTF-8 text") from exc
    except OSError as exc:
        raise SettingsError(f"--config {config} cannot be read: {exc.strerror}") from exc


def _readable(file: Path) -> Path:
    """The same path; raises OSError where pydantic would quietly take a missing file for an empty one."""
    with file.open("rb"):
        return file


def _sentence(error: Any) -> str:
    """One validation error as an operator reads it; secrets are not repeated."""
    text = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return text
    field = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{field} is not a setting"
    if field == "device":
        text = "must be auto, cpu, cuda, or a list such as cuda:0,1 or cpu,cpu"
    has_secret = field in ("api_keys", "expander_key") or (
        field in ("public_url", "expander", "objects", "s3_endpoint", "store") and "@" in str(error["input"])
    )
    got = "" if has_secret or isinstance(error["input"], tuple | list) else f", not {error['input']!r}"
    return f"{flag_of(field)}: {text}{got}"
