"""The commands that need no running server: what they print and how they exit."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.wrong_files import CORPUS
from server.api.clients import CLIENTS
from server.cli import main as command
from server.cli.env import Client
from server.http import running
from tests.ports import free_port
from tests.server.files.lora_files import write_lora


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Cli:
    """Calls the console script's function in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["fluxserve", *arguments])
        code = 0
        try:
            command.main()
        except SystemExit as exc:
            code = int(exc.code or 0)
        captured = self._capsys.readouterr()
        return Done(code, captured.out, captured.err)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in list(os.environ):
        if name.startswith("FLUXSERVE_"):
            monkeypatch.delenv(name)
    return Cli(monkeypatch, capsys)


def test_the_console_script_is_installed_and_knows_its_version() -> None:
    script = Path(sys.executable).with_name("fluxserve")
    out = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=30)
    assert out.returncode == 0
    assert out.stdout.startswith("fluxserve 0.")


def test_the_changelog_is_printed_by_release_or_whole(cli: Cli) -> None:
    newest, whole = cli("changelog").out, cli("changelog", "--all").out
    assert newest.startswith("## ")
    assert newest.count("\n## ") == 0
    assert newest.strip() in whole


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(cli: Cli, shell: str) -> None:
    script = cli("completion", shell).out
    assert "_FLUXSERVE_COMPLETE" in script
    if shutil.which(shell) is None:
        return
    parsed = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, timeout=30)
    assert (parsed.returncode, parsed.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_finds_the_command_that_was_begun(cli: Cli) -> None:
    program = Path(sys.executable).with_name("fluxserve")
    asked = f"{cli('completion', 'bash').out}\nCOMP_WORDS=(fluxserve comp) COMP_CWORD=1\n"
    asked += f'_fluxserve_completion {program}\necho "${{COMPREPLY[@]}}"'
    shown = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60)
    assert shown.stdout.split() == ["completion"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--no-such-flag"], "--no-such-flag"),
        (["serve", "--model", "nonsense"], "flux-shapes"),
        (["serve", "--host", "0.0.0.0"], "--api-key"),
        (["serve", "--config", "/no/such/file.toml"], "--config"),
        (["env", "--client", "cobol"], "cobol"),
        (["generate", "a cat", "-o", "cat.gif"], ".png"),
        (["generate", "a cat", "--size", "huge"], "landscape_4_3"),
        (["generate", "a cat", "--steps", "0"], "num_inference_steps"),
        (["generate", "a cat", "--model", "nonsense"], "flux-shapes"),
        (["paint"], "paint"),
    ],
)
def test_wrong_usage_exits_2_and_names_the_limit(cli: Cli, arguments: list[str], word: str) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert word in done.err
    assert "Traceback" not in done.err


def test_a_taken_port_exits_3_with_one_sentence(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("serve", "--port", str(port), "--tls-port", "0", "--data-dir", str(tmp_path))
    assert done.code == 3
    assert done.err.count("\n") == 1
    assert str(port) in done.err
    assert "--port" in done.err


def test_a_device_that_is_not_here_exits_3_before_anything_starts(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    done = cli("serve", "--device", "cuda:0,7", "--data-dir", str(tmp_path / "data"))
    assert done.code == 3
    assert "cuda:7 is not here; 1 GPU is visible" in done.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", [["serve", "--port", "0", "--tls-port", "0"], ["generate", "x"]])
def test_a_file_of_another_kind_exits_3_before_anything_starts(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    name, make, _ = CORPUS["SDXL's UNet and VAE"]
    make(tmp_path / name)
    place = ["--data-dir", str(tmp_path / "data")] if command[0] == "serve" else ["-o", str(tmp_path / "x.png")]
    done = cli(*command, *place, "--model", str(tmp_path / name))
    assert done.code == 3
    assert done.err == (
        "fluxserve: sdxl.safetensors holds SDXL's UNet without its CLIP L, CLIP G; "
        "take the rest from a folder: --model SDXL --transformer sdxl.safetensors.\n"
    )
    assert not (tmp_path / "data").exists()


def test_an_address_of_another_machine_exits_3(cli: Cli, tmp_path: Path) -> None:
    done = cli("serve", "--host", "192.0.2.1", "--api-key", "k", "--port", "0", "--data-dir", str(tmp_path))
    assert done.code == 3
    assert done.err.startswith("fluxserve: cannot listen on --host 192.0.2.1: ")
    assert done.err.count("\n") == 1


def test_a_data_folder_that_is_a_file_exits_3(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("serve", "--port", "0", "--tls-port", "0", "--data-dir", str(tmp_path / "file"))
    assert done.code == 3
    assert f"--data-dir {tmp_path / 'file'}" in done.err
    assert "Traceback" not in done.err


def test_generate_looks_where_it_will_write_before_it_draws(cli: Cli, tmp_path: Path) -> None:
    done = cli("generate", "x", "-o", str(tmp_path / "missing" / "x.png"), "--model", "nobody/nothing")
    assert done.code == 1
    assert done.err == f"fluxserve: cannot write {tmp_path}/missing/x.png: there is no folder {tmp_path}/missing\n"


def test_env_warns_when_no_server_runs(cli: Cli, tmp_path: Path) -> None:
    assert "no server runs" in cli("env", "--client", "curl", "--data-dir", str(tmp_path)).err


def test_env_is_taken_by_a_shell_whole(cli: Cli, tmp_path: Path) -> None:
    text = cli("env", "--data-dir", str(tmp_path / "with space")).out
    script = f"set -eu\n{text}\n" + 'test -s "$SSL_CERT_FILE"; echo "$FAL_RUN_HOST $FAL_QUEUE_RUN_HOST $FAL_KEY"'
    out = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10)
    assert out.stdout == "127.0.0.1:8443/run 127.0.0.1:8443/queue local:open\n", out.stderr


def test_env_follows_the_server_that_runs(cli: Cli, tmp_path: Path) -> None:
    running.write(tmp_path, running.of_this_process("http://127.0.0.1:9001", "https://127.0.0.1:9002", True))
    values = json.loads(cli("env", "--data-dir", str(tmp_path), "--json").out)
    assert values["python"]["FAL_RUN_HOST"] == "127.0.0.1:9002/run"
    assert values["js"]["proxyUrl"] == {"url": "http://127.0.0.1:9001/api/fal/proxy", "when": "always"}
    assert values["curl"]["key"] == "YOUR_KEY"
    running.remove(tmp_path)
    values = json.loads(cli("env", "--data-dir", str(tmp_path), "--json").out)
    assert values["python"]["FAL_RUN_HOST"] == "127.0.0.1:8443/run"


def test_env_offers_every_client_there_is() -> None:
    assert {str(client) for client in Client} == set(CLIENTS)


def test_env_hands_out_the_key_it_knows(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_API_KEYS", "id:secret,other:key")
    values = json.loads(cli("env", "--data-dir", str(tmp_path), "--client", "python", "--json").out)
    assert values["FAL_KEY"] == "id:secret"


def test_env_for_another_machine_names_it(cli: Cli, tmp_path: Path) -> None:
    values = json.loads(cli("env", "--host", "gpu.lan", "--data-dir", str(tmp_path), "--json").out)
    assert values["curl"]["url"] == "http://gpu.lan:8000"
    assert values["fal-apps"]["FAL_REST_HOST"] == "gpu.lan:8443/rest"


def test_env_for_another_machine_says_what_else_it_needs(cli: Cli, tmp_path: Path) -> None:
    cli("certs", "--data-dir", str(tmp_path))
    text = cli("env", "--host", "gpu.lan", "--client", "python", "--data-dir", str(tmp_path)).out
    assert f"# copy {tmp_path / 'tls' / 'ca-bundle.pem'} to that machine" in text
    assert "# the certificate does not name gpu.lan: serve with --public-url https://gpu.lan:8443" in text
    assert "does not name" not in cli("env", "--host", "localhost", "--data-dir", str(tmp_path)).out


def test_env_for_python_without_tls_fails_with_advice(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXSERVE_TLS_PORT", "0")
    done = cli("env", "--client", "python", "--data-dir", str(tmp_path))
    assert (done.code, "--tls-port" in done.err) == (1, True)
    everything = json.loads(cli("env", "--data-dir", str(tmp_path), "--json").out)
    need_tls = {"python", "python-proxy", "fal-apps", "node-proxy", "hosts", "huggingface", "comfyui-fal"}
    assert set(everything) == set(CLIENTS) - need_tls


def test_a_note_of_a_dead_process_is_ignored(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    running.write(tmp_path, running.Running(child.pid, 0.0, "http://x", None, False))
    assert running.read(tmp_path) is None
    running.write(tmp_path, running.Running(os.getpid(), 0.0, "http://x", None, False))
    assert running.read(tmp_path) is None


def test_certs_shows_where_and_how_to_trust(cli: Cli, tmp_path: Path) -> None:
    facts = json.loads(cli("certs", "--data-dir", str(tmp_path), "--json").out)
    assert Path(facts["ca"]).read_text().startswith("-----BEGIN CERTIFICATE")
    assert "queue.fal.run" in facts["names"]
    assert len(facts["ca_fingerprint"].split(":")) == 32
    text = cli("certs", "--data-dir", str(tmp_path)).out
    assert facts["ca_fingerprint"] in text
    assert "SSL_CERT_FILE" in text


def test_models_lists_the_registry(cli: Cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("models", "--json").out)["models"]}
    assert rows["FLUX.1-dev"]["gated"] is True
    assert rows["random:FLUX.1-dev"]["is_here"] is None
    assert [row["gb"] for row in rows["FLUX.1-Redux-dev"]["memory"]] == [0.99]
    lines = {line.split()[0]: line for line in cli("models").out.splitlines() if line.strip()}
    assert "flux-shapes" in lines
    assert "+ 0.05 GB" in lines["Depth-Anything-V2-Small"]


def test_a_piped_table_has_every_row_on_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = {line.split()[0]: line for line in cli("models", "--endpoints").out.splitlines() if line.strip()}
    assert "--model FLUX.2-dev" in lines["fal-ai/flux-2/edit"]
    assert lines["fal-ai/flux-2-pro"].rstrip().endswith("fal-ai/flux-2/klein/4b")


def test_keys_are_issued_once_listed_without_secrets_and_revoked(cli: Cli, tmp_path: Path) -> None:
    here = ("--data-dir", str(tmp_path))
    first = cli("keys", "new", "--name", "ann", *here).out.strip()
    second = json.loads(cli("keys", "new", "--scope", "queue", "--running", "2", "--json", *here).out)
    for key in (first, second["key"]):
        assert re.fullmatch(r"[0-9a-f-]{36}:[0-9a-f]{64}", key)
    assert first != second["key"]
    assert (second["scopes"], second["limits"]["running"]) == (["queue"], 2)
    listed = cli("keys", "list", *here).out
    assert "ann" in listed
    assert first.partition(":")[2] not in listed
    key_id = first.partition(":")[0]
    assert cli("keys", "revoke", key_id, *here).code == 0
    assert "revoked" in cli("keys", "list", *here).out
    again = cli("keys", "revoke", key_id, *here)
    assert (again.code, "keys list" in again.err) == (1, True)
    shown = json.loads(cli("keys", "list", "--json", *here).out)["keys"]
    assert [key["revoked_at"] is None for key in shown] == [False, True]
    assert all("digest" not in key for key in shown)


def test_a_keys_budgets_are_given_with_it_and_changed_later(cli: Cli, tmp_path: Path) -> None:
    here = ("--json", "--data-dir", str(tmp_path))
    made = json.loads(cli("keys", "new", "--budget", "5/day", "--budget", "200mp/month", *here).out)
    assert made["budgets"] == [
        {"amount": 5.0, "unit": "money", "period": "day"},
        {"amount": 200.0, "unit": "megapixels", "period": "month"},
    ]
    in_money = cli("keys", "set", made["id"], "--budget", "2.5/month", *here)
    assert (in_money.code, "--prices" in in_money.err) == (0, True)
    assert cli("keys", "set", made["id"], "--budget", "1mp/day", *here).err == ""
    assert cli("keys", "set", made["id"], "--budget", "2.5/month", *here).code == 0
    (shown,) = json.loads(cli("keys", "list", *here).out)["keys"]
    assert shown["budgets"] == [{"amount": 2.5, "unit": "money", "period": "month"}]
    assert json.loads(cli("keys", "set", made["id"], "--no-budget", *here).out)["budgets"] == []
    assert json.loads(cli("keys", "list", *here).out)["keys"][0]["budgets"] == []
    wrong = cli("keys", "set", made["id"], "--budget", "much/week", *here)
    assert (wrong.code, "200mp/month" in wrong.err) == (2, True)
    unknown = cli("keys", "set", "nobody", "--budget", "5/day", *here)
    assert (unknown.code, "keys list" in unknown.err) == (1, True)


def test_a_keys_name_and_limits_are_changed_one_by_one(cli: Cli, tmp_path: Path) -> None:
    here = ("--json", "--data-dir", str(tmp_path))
    made = json.loads(cli("keys", "new", "--name", "ann", "--running", "2", "--budget", "5mp/day", *here).out)
    limits = {"running": 2, "waiting": None, "per_minute": None, "storage_bytes": None}
    changed = cli("keys", "set", made["id"], "--per-minute", "60", "--storage-mb", "3", *here)
    limits |= {"per_minute": 60, "storage_bytes": 3_000_000}
    assert json.loads(changed.out)["limits"] == limits
    changed = cli("keys", "set", made["id"], "--running", "0", "--name", "bob", *here)
    (listed,) = json.loads(cli("keys", "list", *here).out)["keys"]
    assert json.loads(changed.out) == listed == made_again(made, name="bob", limits=limits | {"running": None})
    for wrong in ((), ("--budget", "1/day", "--no-budget"), ("--name", "a\x1bb"), ("--waiting", "-1")):
        assert cli("keys", "set", made["id"], *wrong, *here).code == 2
    assert json.loads(cli("keys", "list", *here).out)["keys"] == [listed]
    cli("keys", "revoke", made["id"], *here)
    assert cli("keys", "set", made["id"], "--name", "carl", *here).code == 1


def made_again(made: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A key as it is listed after changes: without its secret."""
    return {name: value for name, value in made.items() if name != "key"} | changes


def test_a_damaged_key_file_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    done = cli("keys", "list", "--data-dir", str(tmp_path))
    assert (done.code, "keys.json" in done.err) == (3, True)


def test_doctor_finds_what_is_broken_and_exits_3(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("FLUXSERVE_PORT", str(port))
        monkeypatch.setenv("FLUXSERVE_TLS_PORT", "0")
        monkeypatch.setenv("FLUXSERVE_MODELS", "random:tiny")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        nowhere = f"127.0.0.1:{free_port()}"
        shared = [
            "--store",
            f"postgresql://u@{nowhere}/x",
            "--objects",
            "s3://bucket/x",
            "--cluster",
            f"ray://{nowhere}",
        ]
        shared += ["--s3-endpoint", f"http://{nowhere}"]
        done = cli("doctor", "--data-dir", str(tmp_path), "--json", *shared)
    report = json.loads(done.out)
    verdicts = {finding["subject"]: finding["verdict"] for finding in report["findings"]}
    assert (done.code, report["ok"], verdicts["ports"]) == (3, False, "broken")
    assert verdicts["database"] == verdicts["bucket"] == verdicts["cluster"] == "broken"
    assert verdicts["torch"] == verdicts["python"] == verdicts["data folder"] == "ok"
    assert verdicts["certificate"] == "warning"


def test_doctor_is_content_with_this_machine(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_PORT", "0")
    monkeypatch.setenv("FLUXSERVE_TLS_PORT", "0")
    monkeypatch.setenv("FLUXSERVE_MODELS", "random:tiny")
    done = cli("doctor", "--data-dir", str(tmp_path))
    assert done.code == 0
    assert "broken" not in done.out


def test_the_gpu_report_says_in_a_sentence_that_there_is_no_gpu(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXSERVE_DEVICE", "cpu")
    done = cli("doctor", "--gpu-report", "--out", str(tmp_path / "report"), "--data-dir", str(tmp_path))
    assert (done.code, done.out) == (3, "")
    assert "no GPU report: random:FLUX.1-dev needs a GPU and there is none" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_generate_writes_what_was_asked_for(cli: Cli, tmp_path: Path) -> None:
    arguments = ["generate", "a shape", "--model", "random:tiny", "--size", "96x64", "--steps", "3", "--seed", "5"]
    done = cli(*arguments, "--num-images", "2", "-o", str(tmp_path / "out.png"), "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert [image["seed"] for image in report["images"]] == [5, 6]
    assert [Path(image["file"]).name for image in report["images"]] == ["out-1.png", "out-2.png"]
    for image in report["images"]:
        with Image.open(image["file"]) as picture:
            assert (picture.size, picture.format) == ((96, 64), "PNG")
    alone = cli(*arguments, "-o", str(tmp_path / "alone.webp"), "--device", "cpu", "--acceleration", "regular")
    assert "step 3/3" in alone.err
    assert "acceleration regular is not fully available" in alone.err
    assert "no safety checker" in alone.out
    with Image.open(tmp_path / "alone.webp") as picture:
        assert picture.format == "WEBP"


def test_generate_says_what_a_server_would_refuse(cli: Cli, tmp_path: Path) -> None:
    common = ("generate", "x", "--size", "64x64", "-o", str(tmp_path / "x.png"))
    done = cli(*common, "--model", "flux2-shapes", "--steps", "1", "--guidance", "3")
    assert done.code == 0
    assert "a server draws flux2-shapes in 4 to 8 steps, not in 1" in done.err
    assert "a server takes no guidance for flux2-shapes" in done.err
    assert "a server" not in cli(*common, "--model", "random:tiny", "--steps", "1", "--guidance", "3").err


def test_generate_takes_loras_with_their_scales(cli: Cli, tmp_path: Path) -> None:
    fits, foreign = (
        write_lora(tmp_path / "my style.safetensors", width=32),
        write_lora(tmp_path / "other.safetensors", width=8),
    )

    def drawn(name: str, *more: str) -> bytes:
        common = ["--model", "random:tiny", "--size", "32x32", "--steps", "1", "--seed", "5", "--device", "cpu"]
        done = cli("generate", "a shape", *common, "-o", str(tmp_path / name), *more)
        assert done.code == 0, done.err
        return Image.open(tmp_path / name).tobytes()

    plain = drawn("plain.png")
    assert drawn("zero.png", "--lora", f"{fits}@0") == plain
    assert drawn("twice.png", "--lora", str(fits), "--lora", f"{fits}@100000") != plain
    done = cli("generate", "x", "--model", "random:tiny", "-o", str(tmp_path / "x.png"), "--lora", str(foreign))
    assert done.code == 1
    assert "transformer_blocks.0.attn.to_out.0 take 8 values and give 8, where this model's layer takes 32" in done.err
    done = cli("generate", "x", "-o", str(tmp_path / "x.png"), "--lora", f"{tmp_path}/missing.safetensors")
    assert done.code == 2
    assert "missing.safetensors: No such file" in done.err


def test_generate_takes_the_transformer_of_a_single_file(cli: Cli, tmp_path: Path) -> None:
    shapes = Path(__file__).parents[3] / "models" / "shapes"
    folder = tmp_path / "models" / "unet"
    folder.mkdir(parents=True)
    stored = shapes / "flux-shapes" / "transformer" / "diffusion_pytorch_model.safetensors"
    (folder / "mine.safetensors").write_bytes(stored.read_bytes())
    common = ["generate", "a red circle", "--size", "64x64", "--steps", "2", "--seed", "7", "--guidance", "3.5"]
    file = ["--transformer", "mine.safetensors", "--model-dir", str(folder.parent)]
    done = cli(*common, "--model", "flux-shapes", *file, "-o", str(tmp_path / "a.png"))
    assert done.code == 0, done.err
    cli(*common, "--model", "flux-shapes", "-o", str(tmp_path / "b.png"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_generate_says_what_is_wrong_with_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"<html>please log in</html>")
    done = cli("generate", "x", "--model", str(tmp_path / "x.safetensors"), "-o", str(tmp_path / "x.png"), "--json")
    assert (done.code, "is not a safetensors file" in done.err, "Traceback" in done.err) == (3, True, False)


def test_generate_repeats_a_seed(cli: Cli, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        cli(
            "generate",
            "x",
            "--model",
            "random:tiny",
            "--size",
            "64x64",
            "--steps",
            "2",
            "--seed",
            "7",
            "-o",
            str(tmp_path / name),
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_generate_says_when_a_model_is_missing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = cli("generate", "x", "--model", "nobody/nothing", "-o", str(tmp_path / "x.png"), "--json")
    assert done.code == 3
    assert "nobody/nothing" in done.err
    assert "Traceback" not in done.err


def test_models_shows_what_each_needs(cli: Cli) -> None:
    (dev,) = [row for row in json.loads(cli("models", "--json").out)["models"] if row["name"] == "FLUX.1-dev"]
    needs = [row["gb"] for row in dev["memory"]]
    assert 38 < needs[0] < 42
    assert min(needs) < 24
