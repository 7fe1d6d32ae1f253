"""What the package never does, and what it never lets out."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.faults.faulty_server import FaultyServer, faulty_server
from w2v_ray import demo

ROOT = Path(__file__).resolve().parents[1]

# What runs code that comes as data, or hands text to a shell, or writes what an archive names. A dotted name
# is matched by its end: np.load is load of np.
FORBIDDEN = {
    "yaml.load": "makes objects of any class",
    "yaml.load_all": "makes objects of any class",
    "yaml.full_load": "makes objects of many classes",
    "yaml.unsafe_load": "makes objects of any class",
    "pickle.load": "runs code",
    "pickle.loads": "runs code",
    "pickle.Unpickler": "runs code",
    "cloudpickle.load": "runs code",
    "cloudpickle.loads": "runs code",
    "dill.load": "runs code",
    "joblib.load": "runs code",
    "marshal.loads": "runs code",
    "shelve.open": "runs code",
    "os.system": "is a shell",
    "os.popen": "is a shell",
    "os.execv": "starts a program",
    "os.spawnv": "starts a program",
    "subprocess.run": "starts a program",
    "subprocess.call": "starts a program",
    "subprocess.check_call": "starts a program",
    "subprocess.check_output": "starts a program",
    "subprocess.Popen": "starts a program",
    "asyncio.create_subprocess_shell": "is a shell",
    "asyncio.create_subprocess_exec": "starts a program",
    "extractall": "writes where an archive says",
    "extract": "writes where an archive says",
    "shutil.unpack_archive": "writes where an archive says",
    "eval": "runs code",
    "exec": "runs code",
    "compile": "makes code of text",
    "__import__": "loads what data may name",
    "importlib.import_module": "loads what data may name",
    "torch.hub.load": "runs code of a repository",
}
# File and call -> why it is right there.
ALLOWED = {
    ("w2v_ray/__init__.py", "importlib.import_module"): "of a table in the same file",
    ("w2v_ray/stages/__init__.py", "importlib.import_module"): "of a list in the same file",
    ("w2v_ray/doctor/devices.py", "subprocess.run"): "of the driver's own tool, without a shell",
    **{
        (f"w2v_ray/doctor/{name}.py", "importlib.import_module"): "of names in the same file"
        for name in ("__init__", "devices", "packages")
    },
    (
        "w2v_ray/audio/speech.py",
        "importlib.import_module",
    ): "of what a job names, never data",
    (
        "w2v_ray/item_process.py",
        "subprocess.Popen",
    ): "of this Python with this package",
    (
        "w2v_ray/item_process.py",
        "pickle.loads",
    ): "between a worker and its own child",
}


def calls(source: str) -> Iterator[tuple[int, str, ast.Call]]:
    """Every call in a source, by line and dotted name, import aliases resolved."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts, function = [], node.func
            while isinstance(function, ast.Attribute):
                parts.append(function.attr)
                function = function.value
            if isinstance(function, ast.Name):
                parts.append(names.get(function.id, function.id))
            elif parts:
                parts.append("")  # a method of what a call or an index gives
            yield node.lineno, ".".join(reversed(parts)), node


def forbidden_calls(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, name and reason of each call that must not be."""
    for line, name, call in calls(source):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}

        def is_set(option: str, value: object, keywords: dict[str | None, ast.expr] = keywords) -> bool:
            given = keywords.get(option)
            return isinstance(given, ast.Constant) and given.value is value

        if name.split(".", 1)[-1] == "compile" and name != "compile":
            continue  # re.compile
        for known, reason in FORBIDDEN.items():
            if name == known or (known in ("extract", "extractall") and name.endswith(f".{known}")):
                yield line, name, reason
        if name == "torch.load" and not is_set("weights_only", True):
            yield line, name, "runs code unless weights_only=True"
        if name in ("numpy.load", "np.load") and not is_set("allow_pickle", False):
            yield line, name, "may run code unless allow_pickle=False"
        if "shell" in keywords and not is_set("shell", False):
            yield line, name, "is a shell"
        if "trust_remote_code" in keywords and not is_set("trust_remote_code", False):
            yield line, name, "runs code of a repository"


def package_files() -> list[Path]:
    return sorted(path for folder in ("w2v_ray", "pipelines") for path in (ROOT / folder).rglob("*.py"))


def test_nothing_runs_data_as_code_or_starts_a_program_or_unpacks_an_archive() -> None:
    found = {
        (str(path.relative_to(ROOT)), name): f"{path.relative_to(ROOT)}:{line} {name}: {reason}"
        for path in package_files()
        for line, name, reason in forbidden_calls(path.read_text(encoding="utf-8"))
    }
    assert [text for key, text in found.items() if key not in ALLOWED] == []
    assert set(ALLOWED) <= set(found), "an exception that is no longer needed"


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.load(x)",
        "from yaml import load as read\nread(x)",
        "import pickle as p\np.loads(x)",
        "import torch\ntorch.load(x)",
        "import torch\ntorch.load(x, weights_only=False)",
        "import torch\ntorch.load(x, weights_only=flag)",
        "import numpy as np\nnp.load(x)",
        "import subprocess\nsubprocess.run(x)",
        "from subprocess import Popen\nPopen(x)",
        "run(x, shell=True)",
        "import os\nos.system(x)",
        "eval(x)",
        "compile(x, y, z)",
        "tar.extractall()",
        "tarfile.open(x).extract(y)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_walk_finds(source: str) -> None:
    assert len(list(forbidden_calls(source))) == 1


def test_the_walk_lets_pass_what_is_safe() -> None:
    source = """
import re, torch, yaml
re.compile(x); yaml.safe_load(x); torch.load(x, weights_only=True); run(x, shell=False)
model.eval(); made(x).eval()
"""
    assert list(forbidden_calls(source)) == []
    assert len(package_files()) > 100


# ---- secrets

CANARIES = ("AKIACANARYCANARY", "canary-secret-5c1d", "canary-session-77aa")

HEAD = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[1], object_store_memory=200 << 20)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
DRIVER = """
import sys, traceback
from w2v_ray.cli import main
try:
    main(["run", "--debug", sys.argv[1], f"output={sys.argv[2]}/failed"])
except Exception:
    traceback.print_exc()
print("CODE", main(["run", sys.argv[1], f"output={sys.argv[2]}/done"]))
"""


@pytest.fixture
def server(s3_server: None) -> Iterator[FaultyServer]:
    with faulty_server(os.environ["AWS_ENDPOINT_URL"]) as server:
        yield server


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The address of a Ray cluster whose workers have credentials, and its folder of logs."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    for name, canary in zip(names, CANARIES, strict=True):
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # workers know it from the job alone
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a short path, as sockets need one
    command = [sys.executable, "-c", HEAD, str(folder)]
    with (
        (folder / "head.log").open("w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as head,
    ):
        assert head.stdout is not None
        yield head.stdout.readline().strip(), folder
        assert head.stdin is not None
        head.stdin.close()
        head.wait(60)
    shutil.rmtree(folder)


def test_a_ray_of_ones_own_is_no_open_cluster(ray_session: None, caplog: pytest.LogCaptureFixture) -> None:
    from w2v_ray.pipeline import running_ray

    with running_ray():
        assert caplog.text == ""


def test_no_secret_is_written_anywhere(
    s3: str, server: FaultyServer, cluster: tuple[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    address, logs = cluster
    bucket = s3.removeprefix("s3://")
    store = fsspec.filesystem("s3", endpoint_url=server.url)
    for file in sorted(demo.ARCHIVE.glob("*.flac"))[:2]:
        store.put_file(str(file), f"{bucket}/in/{file.name}")
    job = tmp_path / "job.yaml"
    settings = {
        "inputs": [f"{s3}/in"],
        "output": "OUT",
        "model": str(tiny_checkpoint),
        "stores": {"s3": {"endpoint_url": server.url, "attempts": 2}},
    }
    job.write_text(yaml.safe_dump(settings))
    server.fail("500", method="PUT", at="/failed/transcripts/", times=None)
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, str(job), s3],
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = result.stdout + result.stderr
    assert "CODE 0" in said, said[-5000:]
    assert "Traceback" in said
    assert "failed/transcripts/" in said
    assert "cannot be written" in said
    assert said.count(f"the Ray cluster at {address} has no token authentication") == 2
    written = [f"{path}: {path.read_bytes()!r}" for path in logs.rglob("*") if path.is_file()]
    assert any("worker-" in text for text in written)
    objects = [name for name in store.find(bucket) if "/in/" not in name]
    assert any("/done/transcripts/" in name for name in objects)
    for name in objects:
        data = store.cat_file(name)
        written.append(f"{name}: {data!r}")
        if name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
            written.append(f"{name}: {table.to_pylist()} {table.schema.metadata}")
    for canary in CANARIES:
        assert canary not in said
        assert [text[:200] for text in written if canary in text] == []
