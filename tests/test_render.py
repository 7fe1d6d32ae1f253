"""What `w2v-ray render` prints: every kind is taken by the schema, parser or shell that will read it."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import ray
import yaml
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from w2v_ray.align_config import AlignConfig
from w2v_ray.cli import main
from w2v_ray.config import JobConfig
from w2v_ray.errors import ConfigError
from w2v_ray.job_file import load_job
from w2v_ray.job_text import job_text
from w2v_ray.render import KINDS, RenderOptions, render

DATA = Path(__file__).parent / "data" / "kubernetes"
KUBERNETES = json.loads((DATA / "kubernetes-1.34.json").read_text())
KUBERAY = yaml.safe_load((DATA / "kuberay-1.6.yaml").read_text())
REGISTRY: Registry = Registry().with_resources(
    [("kubernetes", Resource.from_contents(KUBERNETES)), ("kuberay", Resource.from_contents(KUBERAY))]
)
SCHEMAS = {
    "ConfigMap": "kubernetes#/$defs/io.k8s.api.core.v1.ConfigMap",
    "CronJob": "kubernetes#/$defs/io.k8s.api.batch.v1.CronJob",
    "RayJob": "kuberay#/$defs/RayJob",
    "RayCronJob": "kuberay#/$defs/RayCronJob",
}
JOB: dict[str, Any] = {
    "inputs": ("s3://bucket/in", "s3://bucket/it's $HOME `here` {{ macros }} {% if %}"),
    "output": "s3://bucket/out",
    "model": "facebook/wav2vec2-base-960h",
    "hotwords": ("naïve", "two words", "yes", "1: 2"),
    "stores": {"s3": {"profile": "lab"}},
}
FULL: dict[str, Any] = {
    "name": "nightly",
    "image": "registry.example/w2v-ray:1",
    "namespace": "speech",
    "schedule": "30 1 * * MON-FRI",
    "workers": 4,
    "gpus_per_worker": 2,
    "decode_workers": 3,
    "secret": "keys",
    "service_account": "reader",
    "volume": "archive=/archive",
    "partition": "gpu",
}


def check(document: dict[str, Any]) -> None:
    """As the API server would: an unknown field, a wrong type or a missing field is an error."""
    reference = {"$ref": SCHEMAS[document["kind"]]}
    Draft202012Validator(reference, registry=REGISTRY).validate(document)


def manifests(kind: str, job: JobConfig | None = None, **options: Any) -> dict[str, dict[str, Any]]:
    text = render(kind, job or JobConfig(**JOB), RenderOptions(**{**FULL, **options}))
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    for document in found.values():
        check(document)
    return found


def job_in(text: str, tmp_path: Path) -> JobConfig:
    file = tmp_path / "printed.yaml"
    file.write_text(text, encoding="utf-8")
    return load_job(file)


@pytest.mark.parametrize("kind", ["rayjob", "raycronjob", "cronjob"])
@pytest.mark.parametrize(
    "options",
    [{}, dict.fromkeys(("namespace", "secret", "service_account", "volume")), {"gpus_per_worker": 0}],
)
def test_kubernetes_takes_the_manifests(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    found = manifests(kind, **options)
    config = found.pop("ConfigMap")
    job = job_in(config["data"]["job.yaml"], tmp_path)
    (body,) = found.values()
    assert {one["metadata"]["name"] for one in (config, body)} == {"nightly"}
    assert (job.inputs, job.hotwords, job.stores) == (JOB["inputs"], JOB["hotwords"], JOB["stores"])
    assert job.device == ("cpu" if options.get("gpus_per_worker") == 0 else "cuda")
    if kind != "cronjob":
        assert job.max_encoders == (4 if options.get("gpus_per_worker") == 0 else 8)
    if kind != "rayjob":
        assert body["spec"]["schedule"] == "30 1 * * MON-FRI"


WRONG: list[
    tuple[str, str, object]
] = [  # kind, path, value: a key that is not there, or a value of another type
    ("rayjob", "spec/entryPoint", "x"),
    ("rayjob", "spec/backoffLimit", "3"),
    ("rayjob", "spec/ttlSecondsAfterFinished", 1.5),
    ("rayjob", "spec/shutdownAfterJobFinishes", "true"),
    ("rayjob", "spec/rayClusterSpec/rayVersion", 2.6),
    ("rayjob", "spec/rayClusterSpec/autoscaling", True),
    ("rayjob", "spec/rayClusterSpec/authOptions/mode", "tokens"),
    ("rayjob", "spec/rayClusterSpec/autoscalerOptions/idleTimeoutSeconds", "60"),
    ("rayjob", "spec/rayClusterSpec/autoscalerOptions/idleTimeout", 60),
    ("rayjob", "spec/rayClusterSpec/autoscalerOptions/version", "v3"),
    ("rayjob", "spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0),
    ("rayjob", "spec/rayClusterSpec/headGroupSpec/template/metadata/annotation", {}),
    ("rayjob", "spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/volumeMount", []),
    ("rayjob", "spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/resources/limit", {}),
    ("rayjob", "spec/rayClusterSpec/workerGroupSpecs/0/minReplica", 0),
    ("rayjob", "spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas", "4"),
    ("rayjob", "spec/rayClusterSpec/workerGroupSpecs/0/template/spec/volumes/0/emptydir", {}),
    ("raycronjob", "spec/timeZone", "UTC"),
    ("raycronjob", "spec/schedule", None),
    ("raycronjob", "spec/jobTemplate/spec", {}),
    ("cronjob", "spec/concurrencypolicy", "Forbid"),
    ("cronjob", "spec/jobTemplate/spec/backoffLimit", "3"),
    ("cronjob", "spec/jobTemplate/spec/template/spec/restartpolicy", "Never"),
    ("cronjob", "spec/jobTemplate/spec/template/spec/containers/0/name", None),
]


@pytest.mark.parametrize(("kind", "path", "value"), WRONG, ids=[path for _, path, _ in WRONG])
def test_the_schemas_find_a_wrong_key_and_a_wrong_type(kind: str, path: str, value: object) -> None:
    found = manifests(kind)
    (body,) = (one for one in found.values() if one["kind"] != "ConfigMap")
    at: Any = body
    *parents, last = path.split("/")
    for name in parents:
        at = at[int(name) if isinstance(at, list) else name]
    at[last] = value
    with pytest.raises(ValidationError):
        check(body)


@pytest.mark.parametrize(
    "path",
    [
        "headGroupSpec",
        "workerGroupSpecs/0/groupName",
        "workerGroupSpecs/0/template",
        "headGroupSpec/template",
    ],
)
def test_the_schemas_miss_what_is_required(path: str) -> None:
    body = manifests("rayjob")["RayJob"]
    at: Any = body["spec"]["rayClusterSpec"]
    *parents, last = path.split("/")
    for name in parents:
        at = at[int(name) if isinstance(at, list) else name]
    del at[last]
    with pytest.raises(ValidationError, match=f"'{last}' is a required property"):
        check(body)


def test_a_rayjob_has_a_head_without_work_and_workers_that_begin_at_none() -> None:
    job = JobConfig(**JOB, accelerator_type="L4", gpus_per_encoder=0.5)
    spec = manifests("rayjob", job)["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    encode, decode = cluster["workerGroupSpecs"]
    assert (encode["minReplicas"], encode["maxReplicas"]) == (0, 4)
    assert (decode["minReplicas"], decode["maxReplicas"]) == (0, 3)
    # KubeRay puts the value into a command of the shell as it is; Ray reads JSON.
    (value,) = shlex.split(encode["rayStartParams"]["resources"])
    assert json.loads(value) == {"accelerator_type:L4": 1}
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in (encode, decode)]
    assert limits[0]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in limits[1]
    assert load_job_of(manifests("rayjob", job)).max_encoders == 16
    mounts = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert spec["entrypoint"] == "w2v-ray run /etc/w2v-ray/job.yaml"
    assert {"name": "job", "mountPath": "/etc/w2v-ray"} in mounts


def load_job_of(found: dict[str, dict[str, Any]]) -> JobConfig:
    settings = yaml.safe_load(found["ConfigMap"]["data"]["job.yaml"])
    return JobConfig(**settings)


def test_a_cronjob_can_submit_to_a_ray_that_runs() -> None:
    found = manifests("cronjob", address="http://head:8265")
    (container,) = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    expected = "w2v-ray submit /etc/w2v-ray/job.yaml --address http://head:8265 --name nightly"
    assert container["command"] == expected.split()
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert load_job_of(found).device == "auto"


SBATCH = {  # the options of sbatch that stand in its manual, of those that are printed
    "job-name": r"[a-z0-9-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"\d+",
    "mem": r"\d+[KMGT]",
    "partition": r"[\w,.-]+",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "requeue": None,
    "open-mode": "append|truncate",
    "output": r"\S+",
}


@pytest.mark.parametrize("options", [{}, {"workers": 1, "gpus_per_worker": 0, "partition": None}])
def test_the_batch_script_is_one_that_bash_and_slurm_read(options: dict[str, Any], tmp_path: Path) -> None:
    script = render("slurm", JobConfig(**JOB), RenderOptions(**{**FULL, **options}))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    heads = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(heads)] == heads, "sbatch stops reading at the first command"
    for line in heads:
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        pattern = SBATCH[name]
        assert value == "" if pattern is None else re.fullmatch(pattern, value), line
    assert any("--gpus-per-node=2" in line for line in heads) == (not options)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-"], input=script, text=True, check=True)


def test_the_batch_script_starts_ray_everywhere_and_runs_the_job(tmp_path: Path) -> None:
    """With commands in the place of Ray's and Slurm's that write down how they were called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("ray", "srun", "w2v-ray"):
        text = f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/calls\n'
        if name == "w2v-ray":
            text += (
                f'cat > {tmp_path}/job.yaml\necho "$RAY_ADDRESS $RAY_AUTH_TOKEN" > {tmp_path}/env\nexit 3\n'
            )
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    script = render("slurm", JobConfig(**JOB), RenderOptions(**FULL))
    environment = {
        "PATH": f"{commands}:/usr/bin:/bin",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURMD_NODENAME": "first",
    }
    done = subprocess.run(["bash", "-c", f"{script}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # the job's own
    address, token = (tmp_path / "env").read_text().split()
    calls = sorted((tmp_path / "calls").read_text().splitlines())
    assert len(calls) == 3
    assert calls[0].startswith("ray start --head")
    assert calls[1].startswith("srun --nodes=3 --ntasks=3 --exclude=first ray start --address=" + address)
    assert calls[2] == "w2v-ray run /dev/stdin"
    assert re.fullmatch(r"[\d.]+:24711", address)
    assert re.fullmatch("[0-9a-f]{64}", token)
    job = load_job(tmp_path / "job.yaml")
    assert (job.inputs, job.hotwords, job.max_encoders) == (JOB["inputs"], JOB["hotwords"], 8)


# The parameters that Airflow 3 documents, of those that are used.
DAG = {"dag_id", "description", "schedule", "start_date", "catchup", "max_active_runs", "default_args"}
OPERATOR = {"task_id", "bash_command", "append_env"}


@pytest.mark.parametrize("address", [None, "http://head:8265"])
def test_the_dag_is_python_and_its_command_survives_jinja(address: str | None, tmp_path: Path) -> None:
    text = render("airflow", JobConfig(**JOB), RenderOptions(**{**FULL, "address": address}))
    compile(text, "dag.py", "exec")
    calls = {
        node.func.id: {keyword.arg: keyword.value for keyword in node.keywords}
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert calls["DAG"].keys() == DAG
    assert calls["BashOperator"].keys() == OPERATOR
    assert ast.literal_eval(calls["DAG"]["schedule"]) == "30 1 * * MON-FRI"
    command = jinja2.Template(ast.literal_eval(calls["BashOperator"]["bash_command"])).render()
    first, _, rest = command.partition("\n")
    submits = "submit /dev/stdin --address http://head:8265 --name nightly"
    assert first == f"w2v-ray {submits if address else 'run /dev/stdin'} <<'END_OF_JOB'"
    job = job_in(rest.removesuffix("END_OF_JOB"), tmp_path)
    assert job == JobConfig(**JOB)


@pytest.mark.parametrize(
    ("kind", "options", "settings", "message"),
    [
        ("rayjob", {"image": None}, {}, "image is not given"),
        ("rayjob", {"name": "Not_Good"}, {}, "try 'not-good'"),
        ("raycronjob", {"schedule": "at two"}, {}, "five fields"),
        ("cronjob", {"workers": 0}, {}, "workers is 0, expected 1 or more"),
        ("cronjob", {"memory_per_worker": "much"}, {}, "try 32Gi"),
        ("rayjob", {}, {"output": "out"}, "output holds 'out', which no pod has"),
        ("rayjob", {}, {"inputs": ("/archived/a",)}, "inputs holds '/archived/a', which no pod has"),
        ("rayjob", {"volume": "archive"}, {}, "expected CLAIM=/path"),
        ("rayjob", {}, {"device": "cpu"}, "pass --gpus-per-worker 0"),
        ("slurm", {"gpus_per_worker": 0}, {"device": "cuda"}, "the job asks for a GPU"),
        ("slurm", {"time": "a day"}, {}, "try 24:00:00"),
        ("slurm", {"partition": "a b"}, {}, "a name of Slurm"),
        ("airflow", {"address": "head:8265"}, {}, "try http://HEAD:8265"),
        ("cron", {}, {}, "kind is 'cron', expected one of rayjob"),
    ],
)
def test_what_cannot_run_there_is_refused(
    kind: str, options: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        render(kind, JobConfig(**{**JOB, **settings}), RenderOptions(**{**FULL, **options}))


def test_paths_in_the_mounted_claim_are_fine() -> None:
    job = JobConfig(**{**JOB, "inputs": ("/archive/in",), "output": "/archive"})
    assert load_job_of(manifests("rayjob", job)).inputs == ("/archive/in",)


def test_the_text_of_a_job_is_the_job(tmp_path: Path) -> None:
    job = JobConfig(**JOB, num_encoders=2, threshold=None, partition_by="speaker")
    assert job_in(job_text(job), tmp_path) == job
    settings = yaml.safe_load(
        job_text(AlignConfig(**{name: JOB[name] for name in ("inputs", "output", "model")}))
    )
    assert settings["task"] == "align"


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_prints_what_is_rendered(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "Nightly_Job.yaml"
    file.write_text(job_text(JobConfig(**JOB)))
    assert main(["render", kind, str(file), "dtype=float16", "--image", "i:1", "--workers", "2"]) == 0
    options = RenderOptions(name="nightly-job", image="i:1", workers=2)
    assert capsys.readouterr().out == render(kind, JobConfig(**JOB, dtype="float16"), options)
    assert main(["render", kind, str(file), "device=cpu", "--image", "i:1"]) == 0
    assert "nvidia" not in capsys.readouterr().out
    assert main(["render", kind, str(tmp_path / "gone.yaml")]) == 2
