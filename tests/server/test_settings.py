"""Where a setting comes from, and which settings refuse to start a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from server.settings import CHECKOUT, Settings, SettingsError, flag_of, is_loopback, load


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FLUXSERVE_"):
            monkeypatch.delenv(name)


def test_defaults_are_the_documented_ones() -> None:
    settings = load({})
    assert (settings.host, settings.port, settings.tls_port) == ("127.0.0.1", 8000, 8443)
    assert settings.models == ("flux-shapes",)
    assert settings.data_dir == CHECKOUT / "data"
    assert settings.api_keys == ()


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "fluxserve.toml"
    config.write_text('port = 1111\ntls_port = 1112\nmax_queue = 5\nmodels = ["FLUX.1-dev", "FLUX.1-schnell"]\n')
    monkeypatch.setenv("FLUXSERVE_PORT", "2222")
    monkeypatch.setenv("FLUXSERVE_TLS_PORT", "2223")
    settings = load({"port": 3333, "tls_port": None}, config)
    assert (settings.port, settings.tls_port, settings.max_queue) == (3333, 2223, 5)
    assert settings.models == ("FLUX.1-dev", "FLUX.1-schnell")
    assert settings.hang_s == 120.0


def test_lists_in_the_environment_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_API_KEYS", "a:b, c:d,")
    monkeypatch.setenv("FLUXSERVE_ALLOW_PRIVATE_CIDRS", "10.1.2.3/8")
    settings = load({})
    assert settings.api_keys == ("a:b", "c:d")
    assert settings.allow_private_cidrs == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FLUXSERVE_API_KEY", "FLUXSERVE_API_KEYS"),
        ("FLUXSERVE_MODEL", "FLUXSERVE_MODELS"),
        ("fluxserve_allow_private_cidr", "FLUXSERVE_ALLOW_PRIVATE_CIDRS"),
        ("FLUXSERVE_PROT", "FLUXSERVE_PORT"),
        ("FLUXSERVE_XYZZY", None),
    ],
)
def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None) -> None:
    """The flag's own name instead of the setting's would else start a server without a key."""
    monkeypatch.setenv(name, "id:secret")
    with pytest.raises(SettingsError) as caught:
        load({})
    assert str(caught.value) == f"{name} is not a setting" + (f"; did you mean {meant}?" if meant else "")


def test_what_kubernetes_says_of_a_service_with_our_name_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, port in (("FLUXSERVE", "8000"), ("FLUXSERVE_TLS", "8443"), ("FLUXSERVE_TEAM_A", "80")):
        monkeypatch.setenv(f"{name}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{name}_SERVICE_PORT", port)
        monkeypatch.setenv(f"{name}_SERVICE_PORT_HTTP_MAIN", port)
        monkeypatch.setenv(f"{name}_PORT", f"tcp://10.0.0.1:{port}")
        monkeypatch.setenv(f"{name}_PORT_{port}_TCP", f"tcp://10.0.0.1:{port}")
        monkeypatch.setenv(f"{name}_PORT_{port}_TCP_PROTO", "tcp")
        monkeypatch.setenv(f"{name}_PORT_{port}_TCP_PORT", port)
        monkeypatch.setenv(f"{name}_PORT_{port}_TCP_ADDR", "10.0.0.1")
    settings = load({})
    assert (settings.port, settings.tls_port) == (8000, 8443)
    monkeypatch.setenv("FLUXSERVE_PORT", "9000")
    assert load({}).port == 9000


def test_what_docker_says_of_a_link_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_NAME", "/web/fluxserve")
    monkeypatch.setenv("FLUXSERVE_ENV_PATH", "/usr/bin")
    monkeypatch.setenv("FLUXSERVE_PORT", "tcp://172.17.0.2:8000")
    assert load({}).port == 8000


def test_a_variable_that_was_left_empty_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compose file's `${VARIABLE}` without a value is empty; the current folder is no data folder then."""
    for field in Settings.model_fields:
        monkeypatch.setenv(f"FLUXSERVE_{field.upper()}", "" if field != "api_keys" else "id:secret")
    assert load({}).model_dump() == Settings(api_keys=("id:secret",)).model_dump()


@pytest.mark.parametrize("value", ["", " , "])
def test_an_empty_key_does_not_open_the_server(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FLUXSERVE_API_KEYS", value)
    with pytest.raises(SettingsError, match="FLUXSERVE_API_KEYS is empty"):
        load({})
    assert load({"api_keys": ("id:secret",)}).api_keys == ("id:secret",)


def test_a_password_in_the_public_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match="--public-url") as caught:
        load({"public_url": "https://me:hidden@fal.example.com"})
    assert "hidden" not in str(caught.value)


def test_key_file_holds_one_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# production\nid:secret\n\nother:key\n")
    assert load({"api_keys": (f"@{file}",)}).api_keys == ("id:secret", "other:key")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": 70000}, ["--port", "65535", "70000"]),
        ({"port": "many"}, ["--port", "integer", "many"]),
        ({"device": "gpu"}, ["--device", "cuda:0,1", "gpu"]),
        ({"dtype": "int8"}, ["--dtype", "bfloat16", "int8"]),
        ({"public_url": "fal.example.com"}, ["--public-url", "https://fal.example.com"]),
        ({"allow_private_cidrs": ("10.0.0.0/99",)}, ["--allow-private-cidr", "10.0.0.0/99"]),
        ({"port": 9000, "tls_port": 9000}, ["--port", "--tls-port", "9000"]),
        ({"models": ()}, ["--model", "at least one"]),
        ({"api_keys": ("@/no/such/file",)}, ["--api-key", "/no/such/file"]),
        ({"api_keys": ("",)}, ["--api-key", "empty"]),
        ({"api_keys": ("a\nb",)}, ["--api-key", "printable"]),
        ({"memory_gb": 0}, ["--memory-gb", "greater than 0"]),
        ({"retention_s": "inf"}, ["--retention-s", "finite"]),
        ({"public_url": "https://x.test/a b"}, ["--public-url", "must look like"]),
        ({"public_url": "https://x.test:99999"}, ["--public-url", "65535"]),
        ({"public_url": "https://x.test:0"}, ["--public-url", "65535"]),
        ({"quantization": "int3"}, ["--quantization", "fp8", "int3"]),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_flag_and_limit(flags: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load({}, tmp_path / "f.toml")


def test_every_quantization_scheme_is_a_setting() -> None:
    from models.quantization import SCHEMES

    assert set(get_args(Settings.model_fields["quantization"].annotation)) == set(SCHEMES)


@pytest.mark.parametrize(
    ("content", "words"),
    [("prot = 1\n", ["prot", "not a setting"]), ("port = = 1", ["TOML"]), (None, ["cannot be read", "No such file"])],
)
def test_a_wrong_file_says_so(tmp_path: Path, content: str | None, words: list[str]) -> None:
    config = tmp_path / "f.toml"
    if content is not None:
        config.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load({}, config)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu.lan"])
def test_public_bind_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(SettingsError, match="--api-key"):
        load({"host": host})
    assert load({"host": host, "api_keys": ("k",)}).host == host
    assert load({"host": host, "allow_insecure_bind": True}).host == host


@pytest.mark.parametrize(("host", "expected"), [("localhost", True), ("127.3.2.1", True), ("::1", True), ("x", False)])
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "url", ["s3://a-key:a-secret@bucket/x", "https://bucket", "s3://", "s3://Bucket", "s3://b/../c"]
)
def test_a_bucket_is_an_address_without_keys(url: str) -> None:
    with pytest.raises(SettingsError, match=r"must look like s3://bucket/prefix.*AWS_ACCESS_KEY_ID") as caught:
        load({"objects": url})
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3.example.com", "https://a:a-secret@s3.example.com", "https://s3.example.com/bucket"]
)
def test_an_endpoint_is_a_host_without_keys(url: str) -> None:
    with pytest.raises(SettingsError, match=r"must look like https://s3.example.com") as caught:
        load({"objects": "s3://bucket/x", "s3_endpoint": url})
    assert "a-secret" not in str(caught.value)


def test_what_belongs_to_a_bucket_needs_one() -> None:
    for alone in ({"s3_endpoint": "https://s3.example.com"}, {"s3_redirect": True}):
        with pytest.raises(SettingsError, match="belong to --objects"):
            load(alone)
    assert (
        load({"objects": "s3://my.bucket/a/b", "s3_endpoint": "http://127.0.0.1:9000"}).objects == "s3://my.bucket/a/b"
    )


def test_keys_do_not_show_when_settings_are_printed() -> None:
    assert "id:secret" not in repr(load({"api_keys": ("id:secret",)}))


def test_a_rejected_key_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"api_keys": {"secret": 1}})
    assert "secret" not in str(caught.value)


def test_flag_names() -> None:
    assert flag_of("tls_port") == "--tls-port"
    assert flag_of("api_keys") == "--api-key"


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_is_documented_with_its_flag_and_variable(field: str) -> None:
    rows = (CHECKOUT / "docs" / "configuration.md").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith(f"| `{flag_of(field)}`")]
    assert f"`FLUXSERVE_{field.upper()}`" in row
    assert f"`{field}`" in row


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_is_a_flag_of_serve(field: str) -> None:
    from typer.main import get_command

    from server.cli.main import app

    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    assert flag_of(field) in {option for parameter in serve.params for option in parameter.opts}


def test_how_many_workers_a_cluster_is_asked_for() -> None:
    assert load({}).cluster is None
    assert load({"cluster": "auto", "workers": "2"}).worker_range == (2, 2)
    assert load({"cluster": "ray://head.example.com:10001", "workers": "1-8"}).worker_range == (1, 8)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"parallel": "2", "models_on_demand": "here"}, "leave --models-on-demand out"),
        ({"cluster": "auto", "workers": "8-1"}, "the first number is the smaller one"),
        ({"cluster": "auto", "workers": "0-4"}, "workers"),
        ({"cluster": "auto", "device": "cuda:0,1"}, "the cluster picks the devices"),
        ({"cluster": "http://head:1"}, "cluster"),
        ({"workers": "2"}, "--workers is about a cluster"),
    ],
)
def test_workers_that_cannot_be_meant_are_refused(flags: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(flags)
