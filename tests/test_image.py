"""The container image: what the Dockerfile promises, and, where `POLYPHI_IMAGE` names a built one, what it does.

sh deploy/build.sh polyphi-test ...                                   # docs/container.md
POLYPHI_IMAGE=localhost/polyphi-test pytest tests/test_image.py       # runs it with podman, as root
"""

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from PIL import Image

from polyphi.cli.serve import serve
from polyphi.serve.http.guard import LOOPBACK_NAMES, PUBLIC
from tests.fixtures import published
from tests.fixtures.command_line import parsed
from tests.fixtures.processes import ROOT, completed

PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = os.environ.get("POLYPHI_IMAGE")
KEY = "a-key-of-this-test"
NAMESPACE = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec podman "$@"'
"""Podman refuses machines with control groups of both versions; here it sees version 2 alone."""
runs_the_image = pytest.mark.skipif(not IMAGE, reason="POLYPHI_IMAGE names no built image")


def instructions(text: str) -> list[tuple[str, str]]:
    """Name and arguments of each instruction of a Dockerfile."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), arguments) for name, arguments in pairs]


TEXT = (ROOT / "Dockerfile").read_text()
ALL = instructions(TEXT)
FINAL = ALL[max(i for i, (name, _) in enumerate(ALL) if name == "FROM") :]


def last(name: str) -> str:
    return [arguments for other, arguments in FINAL if other == name][-1]


def environment() -> dict[str, str]:
    """The variables that the final image sets."""
    pairs = [word for name, words in FINAL if name == "ENV" for word in shlex.split(words)]
    return dict(pair.split("=", 1) for pair in pairs)


def health_command() -> list[str]:
    return json.loads(last("HEALTHCHECK").partition("CMD ")[2])


def test_the_image_runs_as_a_fixed_user_without_privileges() -> None:
    assert [int(number) > 0 for number in last("USER").split(":")] == [True, True]


def test_everything_that_is_written_lies_in_the_volume() -> None:
    volume = Path(last("VOLUME"))
    for name in ("HOME", "HF_HOME", "POLYPHI_CACHE"):
        assert Path(environment()[name]).is_relative_to(volume), name


def test_entry_point_and_default_command_exist() -> None:
    (program,) = json.loads(last("ENTRYPOINT"))
    assert program in PACKAGE["scripts"]
    command, *arguments = json.loads(last("CMD"))
    function, bound = parsed([command, *arguments])
    assert function is serve and bound.arguments["model"] == arguments[0]


def test_the_server_listens_where_the_image_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLYPHI_HOST", "POLYPHI_PORT"):
        monkeypatch.setenv(name, environment()[name])
    settings = parsed(["serve", "/models/model"])[1].arguments["settings"]
    assert (settings.host, settings.port) == ("0.0.0.0", int(last("EXPOSE")))


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health_check(status: int | None, healthy: bool) -> None:
    """It succeeds for a server that answers 200 at /health, and fails for others and without one."""
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    if status is None:
        server.shutdown()
        server.server_close()
    program, *arguments = health_command()
    assert program == "python"
    result = completed(sys.executable, *arguments, POLYPHI_PORT=str(server.server_port))
    assert (result.returncode == 0) is healthy, result.stdout
    assert set(paths) <= {"/health"}
    if status is not None:
        server.shutdown()
        server.server_close()


def test_no_secrets_and_no_addresses_of_registries() -> None:
    names = [w.partition("=")[0] for n, words in ALL if n in ("ARG", "ENV") for w in words.split()]
    assert not [n for n in names if re.search(r"KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL", n.upper())]
    assert "://" not in TEXT
    assert not [words for name, words in ALL if name == "ADD"]


def test_the_base_and_all_packages_but_torch_are_pinned() -> None:
    (base,) = [words for name, words in ALL if name == "ARG" and words.startswith("BASE=")]
    assert re.search(r"@sha256:[0-9a-f]{64}$", base)
    commands = [words for name, words in ALL if name == "RUN"]
    installs = [part for words in commands for part in words.split("&&") if " install " in part]
    for part in (part for part in installs if "/pip " in part):
        own = '"$TORCH"' in part or "/wheels/*.whl" in part
        assert "--no-deps" in part and (own or "--require-hashes" in part), part
    extras = next(words for name, words in FINAL if name == "ARG" and words.startswith("EXTRAS="))
    assert (ROOT / f"deploy/requirements/{extras.partition('=')[2]}.txt").is_file()


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out of the context: the last pattern that matches it, or a folder above it,
    decides."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = Path(path).parts
        above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        names = parts if "**/" in line else above
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            result = not line.startswith("!")
    return result


def test_the_context_is_the_package_and_nothing_else() -> None:
    copied = [word for name, words in ALL if name == "COPY" for word in words.split()[:-1]]
    assert "polyphi" in copied and "pyproject.toml" in copied
    assert not [path for path in copied if ignored(path) or not (ROOT / path).exists()]
    listed = completed(
        "git", "ls-files", "polyphi", "polyphi_eval", "polyphi_recipe"
    ).stdout.splitlines()
    assert not [path for path in listed if ignored(path)]
    for path in (
        ".git/config",
        ".venv/bin/python",
        "runs/nano/model/config.json",
        ".env",
        "tests/conftest.py",
    ):
        assert ignored(path), path
    assert ignored("polyphi/kernels/_native.so") and ignored("polyphi/cli/__pycache__/chat.pyc")


def test_the_compose_file_restricts_the_container() -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["polyphi"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    targets = [volume.rpartition("}")[2].split(":")[1] for volume in service["volumes"]]
    assert targets == [last("VOLUME"), json.loads(last("CMD"))[-1]]
    assert set(service["tmpfs"]) == {"/tmp"}


def test_the_probes_of_the_pod_are_answered() -> None:
    """By a server whose names `--allow-host` lists: a probe's own Host header would be the pod's address."""
    page = (ROOT / "docs" / "container.md").read_text()
    (text,) = re.findall(r"(?s)```yaml\n(.*?)```", page)
    (server,) = yaml.safe_load(text)["spec"]["containers"]
    parsed(server["args"])
    for probe in ("livenessProbe", "startupProbe", "readinessProbe"):
        request = server[probe]["httpGet"]
        assert request["path"] in PUBLIC
        (header,) = request["httpHeaders"]
        assert header["name"] == "Host" and header["value"] in LOOPBACK_NAMES


def podman(*arguments: str) -> list[str]:
    return ["unshare", "-m", "sh", "-c", NAMESPACE, "podman", *arguments]


def container(*options: str) -> list[str]:
    """A command that runs the image with the restrictions of deploy/compose.yaml, up to the options."""
    limit = os.sysconf("SC_OPEN_MAX")
    restrictions = (
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
    )
    return podman(
        "run", "--rm", "--cgroups=disabled", f"--ulimit=nofile={limit}:{limit}", *restrictions, *options, str(IMAGE)
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that other users may read."""
    folder = published.write(tmp_path_factory.mktemp("image") / "model")
    Image.new("RGB", (40, 50), "red").save(folder.parent / "red.png")
    for path in (folder, *folder.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    return folder


@pytest.fixture
def volume() -> Iterator[str]:
    name = f"polyphi-test-{os.getpid()}"
    yield name
    completed(*podman("volume", "rm", "--force", name))


@pytest.mark.long
@runs_the_image
def test_chat_in_the_image(model: Path, volume: str) -> None:
    mounts = (f"--volume={volume}:/models", f"--volume={model.parent}:/models/mine:ro")
    command = container(*mounts, "--network=none")
    arguments = (
        "chat",
        "/models/mine/model",
        "--image",
        "/models/mine/red.png",
        "which colour is it",
    )
    result = completed(*command, *arguments, "--max-tokens", "4")
    assert result.returncode == 0, result.stdout


@pytest.mark.long
@runs_the_image
def test_user_and_root_file_system_of_the_image(volume: str) -> None:
    code = """
import json, os
def writable(folder):
    try:
        open(os.path.join(folder, "x"), "w").close()
    except OSError:
        return False
    return True
from polyphi import kernels
status = open("/proc/self/status").read()
capabilities = {line.split()[1] for line in status.splitlines() if line.startswith("Cap")}
folders = {f: writable(f) for f in ("/", "/opt/polyphi", "/tmp", "/models")}
print(json.dumps([os.getuid(), os.getgid(), folders, sorted(capabilities), kernels.missing()]))
"""
    command = container(f"--volume={volume}:/models", "--network=none", "--entrypoint=python")
    result = completed(*command, "-c", code)
    uid, gid, folders, capabilities, kernels = json.loads(result.stdout.splitlines()[-1])
    assert f"{uid}:{gid}" == last("USER")
    assert folders == {"/": False, "/opt/polyphi": False, "/tmp": True, "/models": True}
    assert capabilities == ["0" * 16] and kernels is None


@pytest.mark.long
@runs_the_image
def test_what_is_missing_is_reported(volume: str) -> None:
    result = completed(*container(f"--volume={volume}:/models"))
    assert result.returncode == 2 and "POLYPHI_API_KEY" in result.stdout
    result = completed(*container(f"--volume={volume}:/models", f"--env=POLYPHI_API_KEY={KEY}"))
    assert result.returncode == 2 and "/models/model" in result.stdout, result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.long
@runs_the_image
def test_server_in_the_image(model: Path, volume: str) -> None:
    """It answers through a published port, is healthy, and ends with status 0 when it is asked to stop."""
    name = f"polyphi-test-{os.getpid()}"
    command = container(
        f"--name={name}", "--publish=127.0.0.1::8000", f"--env=POLYPHI_API_KEY={KEY}",
        f"--volume={volume}:/models", f"--volume={model}:/models/model:ro",
    )  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        port = wait_for_port(name, server)
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(address, server)
        body = {
            "model": "model",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "say red"}],
        }
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["completion_tokens"] >= 1
        check = completed(*podman("healthcheck", "run", name))
        assert check.returncode == 0, check.stdout
        assert completed(*podman("kill", "--signal=TERM", name)).returncode == 0
        assert server.wait(timeout=90) == 0
    finally:
        completed(*podman("rm", "--force", "--time=0", name))
        server.wait(timeout=60)


def wait_for_port(name: str, server: subprocess.Popen[str]) -> int:
    """The port of this machine that leads to the container's 8000."""
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        line = completed(*podman("port", name, "8000")).stdout.strip()
        if match := re.search(r"127\.0\.0\.1:(\d+)$", line):
            return int(match[1])
        time.sleep(0.5)
    raise AssertionError(output(server))


def wait_until_ready(address: str, server: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/ready", timeout=5) as response:
                assert response.status == 200
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(output(server))


def output(server: subprocess.Popen[str]) -> str:
    server.kill()
    return server.communicate()[0][-4000:]


def test_the_build_script_is_valid() -> None:
    result = completed("sh", "-n", "deploy/build.sh")
    assert result.returncode == 0, result.stdout
