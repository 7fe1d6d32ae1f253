"""What a job would do, told from its plan, the size of a cluster and earlier runs, with nothing written.

Ray is not started: pools are those that a cluster of the given size would get.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.encoder_config import float_dtype
from w2v_ray.errors import ConfigError, MissingExtraError
from w2v_ray.frame_rate import model_config
from w2v_ray.head_config import read_also
from w2v_ray.job import prepare, prepare_redecode, prepare_retry
from w2v_ray.plan import Plan, newest_items
from w2v_ray.pools import Machines, Pools

__all__ = ["Attention", "Forecast", "Stage", "forecast", "forecast_retry", "read_cluster"]

_RUNS_READ = 10  # the newest, of which one may have got nowhere
_RESULTS = {"transcribe": "decode_text", "classify": "choose_labels", "frames": "find_turns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One or several stages that run in the same workers, and what each worker reserves."""

    names: tuple[str, ...]
    num_workers: int | None
    """None: as many as CPUs are free, or where the cluster is not known."""
    cpus: float | None
    gpus: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The attention kernel that encoders would compute with, and why it is that one."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a job would do. Seconds are of audio unless the name says otherwise."""

    task: str
    output: str
    model: str
    """The checkpoint, or the source of a job that decodes again."""
    settings: dict[str, Any]
    """Those that are not as they were left."""
    num_items: int
    """Recordings, or time ranges of one, planned before or now."""
    num_new: int
    """Of these, the ones that no plan holds, without those that have changed."""
    num_changed: int
    """Of these, the ones that would take the place of earlier items."""
    num_gone: int
    """Recordings that are planned and that the inputs name no more."""
    retried: dict[str, int] | None
    """Of a retry, rejected items that would be done again, by the class of their errors; None: it is none."""
    num_mended: int
    """Of a retry, recordings whose files have changed since they were planned."""
    num_duplicates: int
    skipped: dict[str, int]
    """Files of the inputs that would not be planned, by reason."""
    planned_s: float
    pending_s: float
    num_bytes: int | None
    """Bytes of the audio as it is stored, where that is known; None where no audio is read."""
    num_pending_bytes: int | None
    num_shards: int
    num_new_shards: int
    num_pending_shards: int
    cluster: str
    """Where the sizes below come from."""
    cpus: float | None
    """None: not known."""
    gpus: float | None
    stages: tuple[Stage, ...]
    attention: Attention | None
    """None: nothing is encoded."""
    rate_x: float | None
    """Seconds of audio in a second; None: not known."""
    rate_source: str
    expected_s: float | None
    """Wall-clock time for what is pending; None: not known."""

    @property
    def num_published_shards(self) -> int:
        """Shards that earlier runs have done."""
        return self.num_shards - self.num_pending_shards

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def read_cluster(text: str) -> tuple[float, float]:
    """The CPUs and GPUs that a text of the form ``CPUS,GPUS`` names; GPUs may be left out.

    Raises:
        ConfigError: It has another form, or names no CPU.
    """
    parts = text.split(",")
    try:
        cpus, gpus = float(parts[0]), float(parts[1]) if len(parts) == 2 else 0.0
    except ValueError:
        cpus = gpus = -1.0
    if len(parts) > 2 or not (1 <= cpus < math.inf and 0 <= gpus < math.inf):
        raise ConfigError(f"cluster is {text!r}, expected CPUS,GPUS; write it as 64,8")
    return cpus, gpus


def forecast(
    job: JobConfig | RedecodeConfig,
    *,
    cluster: tuple[float, float] | None = None,
    rate: float | None = None,
) -> Forecast:
    """Checks and plans a job as running it would, and says what would be done, without writing anything.

    Args:
        job: What to do.
        cluster: CPUs and GPUs to assume; None: those of this machine, unless RAY_ADDRESS names a cluster.
        rate: Seconds of audio in a second to assume; None: that of the last run of this output.

    Raises:
        W2vRayError: The job cannot be run, for a reason that can be seen without writing and without Ray.
    """
    _check_rate(rate)
    plan = (
        prepare_redecode(job, record=False)[0]
        if isinstance(job, RedecodeConfig)
        else prepare(job, record=False)
    )
    return _forecast_of(job, plan, cluster=cluster, rate=rate, is_retry=False)


def forecast_retry(
    job: JobConfig,
    *,
    reasons: Sequence[str] = (),
    stages: Sequence[str] = (),
    cluster: tuple[float, float] | None = None,
    rate: float | None = None,
) -> Forecast:
    """Says what doing the rejected items of an output again would do, without writing anything.

    Args:
        job: Of `w2v_ray.job.recorded_job`.
        reasons: Classes of errors; empty: all.
        stages: Stages that failed; empty: all.
        cluster: As of `forecast`.
        rate: As of `forecast`.

    Raises:
        W2vRayError: They cannot be done again, for a reason that can be seen without writing.
    """
    _check_rate(rate)
    plan = prepare_retry(job, reasons=reasons, stages=stages, record=False)
    return _forecast_of(job, plan, cluster=cluster, rate=rate, is_retry=True)


def _check_rate(rate: float | None) -> None:
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"rate is {rate:g}, expected more than 0; give seconds of audio in a second")


def _forecast_of(
    job: JobConfig | RedecodeConfig,
    plan: Plan,
    *,
    cluster: tuple[float, float] | None,
    rate: float | None,
    is_retry: bool,
) -> Forecast:
    where, size = _cluster(cluster)
    if cluster is None and size is not None and isinstance(job, JobConfig) and job.device != "cpu":
        import torch

        size = size[0], float(torch.cuda.device_count())
    pools = _pools(job, size)
    new_shards = plan.items.column("shard_id").slice(plan.items.num_rows - plan.num_new)
    rate_source = "--rate"
    if rate is None:
        rate, rate_source = _rate_of_runs(plan.output)
    return Forecast(
        task=job.task if isinstance(job, JobConfig) else "redecode",
        output=job.output,
        model=job.model if isinstance(job, JobConfig) else job.source,
        settings=_settings(job),
        num_items=plan.num_items,
        num_new=plan.num_new - plan.num_changed,
        num_changed=plan.num_changed,
        num_gone=plan.num_gone,
        retried=dict(plan.retried) if is_retry else None,
        num_mended=_num_mended(plan) if is_retry else 0,
        num_duplicates=plan.num_duplicates,
        skipped=dict(plan.skipped),
        planned_s=plan.planned_s,
        pending_s=plan.pending_s,
        num_bytes=_num_bytes(plan, job, is_pending=False),
        num_pending_bytes=_num_bytes(plan, job, is_pending=True),
        num_shards=plan.num_shards,
        num_new_shards=pc.count_distinct(new_shards).as_py(),
        num_pending_shards=plan.num_pending,
        cluster=where,
        cpus=size and size[0],
        gpus=size and size[1],
        stages=_stages(job, pools),
        attention=_attention(job, pools, is_here=cluster is None and size is not None),
        rate_x=rate,
        rate_source=rate_source,
        expected_s=plan.pending_s / rate if rate else None,
    )


def _num_mended(plan: Plan) -> int:
    """Recordings planned as their files are now; what is tried again as it was keeps its fingerprint."""
    num_before = plan.items.num_rows - plan.num_new
    known, new = plan.items.slice(0, num_before), plan.items.slice(num_before)
    is_known = pc.is_in(new.column("fingerprint"), value_set=pc.unique(known.column("fingerprint")))
    return int(pc.count_distinct(new.filter(pc.invert(is_known)).column("recording_id")).as_py())


def _cluster(given: tuple[float, float] | None) -> tuple[str, tuple[float, float] | None]:
    if given is not None:
        return "--cluster", given
    if address := os.environ.get("RAY_ADDRESS"):
        return f"the cluster at RAY_ADDRESS ({address})", None
    return "this machine", (float(os.cpu_count() or 1), 0.0)


def _pools(job: JobConfig | RedecodeConfig, size: tuple[float, float] | None) -> Pools | None:
    if size is None:
        return None
    cpus, gpus = size
    if isinstance(job, RedecodeConfig):
        return Pools.for_redecode(job, cpus=cpus)
    return Pools.for_cluster(job, Machines(num_nodes=1, cpus=cpus, node_cpus=cpus, gpus=gpus))


def _stages(job: JobConfig | RedecodeConfig, pools: Pools | None) -> tuple[Stage, ...]:
    """The stages in the order of the flow, those together that share workers."""
    if isinstance(job, RedecodeConfig):
        names: dict[str, tuple[str, ...]] = {"read": ("read_log_probs",), "decode": ("decode_text",)}
    else:
        tasks = [job.task, *(read_also(text)[0] for text in job.also)]
        results = tuple(_RESULTS[task] for task in tasks if task in _RESULTS)
        names = {"read": ("read_audio", "decode_audio", "segment_audio"), "encode": ("encode",)}
        names["decode"] = ("align_text",) if isinstance(job, AlignConfig) else results
    names["write"] = ("write_parquet",)
    sizes: dict[str, tuple[int | None, float, float]] = {}
    if pools is not None:
        sizes = {
            "read": (pools.num_readers, pools.task_cpus, 0.0),
            "encode": (pools.num_encoders, pools.encoder_cpus, pools.encoder_gpus),
            "decode": (pools.num_decoders, pools.decoder_cpus, 0.0),
            "write": (pools.num_writers, pools.task_cpus, 0.0),
        }
    stages = []
    for pool, together in names.items():
        num_workers, cpus, gpus = sizes.get(pool, (None, None, None))
        if together:
            stages.append(Stage(names=together, num_workers=num_workers, cpus=cpus, gpus=gpus))
    return tuple(stages)


def _attention(job: JobConfig | RedecodeConfig, pools: Pools | None, *, is_here: bool) -> Attention | None:
    if isinstance(job, RedecodeConfig):
        return None
    import torch

    from w2v_ray.models.attention import adds_bias, choose_attention

    if pools is not None:
        device = "cuda" if pools.encoder_gpus else "cpu"
    else:
        device = job.device
    if device == "auto" and job.attn_implementation == "auto":
        return Attention(name="auto", reason="auto, which encoders decide, as it depends on where they run")
    bias = adds_bias(model_config(job.model, revision=job.revision))
    dtype = getattr(torch, float_dtype(job.dtype, on_gpu=device.startswith("cuda")))
    try:
        name, reason = choose_attention(
            job.attn_implementation, bias=bias, dtype=dtype, device=device.replace("auto", "cpu")
        )
        if device == "cuda" and job.attn_implementation == "auto" and not is_here:
            reason += ", told from this machine"
    except MissingExtraError:
        if is_here:
            raise
        name = job.attn_implementation
        reason = f"{name} was asked for; flash-attn has to be there where encoders run"
    return Attention(name=name, reason=reason)


def _num_bytes(plan: Plan, job: JobConfig | RedecodeConfig, *, is_pending: bool) -> int | None:
    """Bytes of the files, members and values that items name, each once."""
    if isinstance(job, RedecodeConfig):
        return None
    items = plan.items.filter(newest_items(plan.items))
    if is_pending:
        pending = pa.array(plan.pending, pa.string())
        items = items.filter(pc.is_in(items.column("shard_id"), value_set=pending))
    places = ["uri", "byte_offset", "container", "row"]
    sizes = items.group_by(places).aggregate([("byte_size", "max")]).column("byte_size_max")
    return int(pc.sum(sizes, min_count=0).as_py())


def _settings(job: JobConfig | RedecodeConfig) -> dict[str, Any]:
    shown_elsewhere = ("task", "inputs", "output", "model", "source")
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in fields(job)
        if field.name not in shown_elsewhere and (value := getattr(job, field.name)) != field.default
    }


def _rate_of_runs(output: str) -> tuple[float | None, str]:
    """The rate of the last run of an output that did something, and which it was."""
    folder = stores.join(output, "_runs")
    names = [name for name in stores.list_names(folder) if name.endswith(".json")]
    for name in sorted(names, reverse=True)[:_RUNS_READ]:
        try:
            found = json.loads(stores.read_bytes(stores.join(folder, name)))
            rate = float(found["progress"]["rate_x"])
            nodes = f"{float(found['cluster']['cpus']):g} CPUs, {float(found['cluster']['gpus']):g} GPUs"
        except Exception:  # each store has its own errors; a record that cannot be read is no rate
            continue
        if 0 < rate < math.inf:
            return rate, f"run {name.removesuffix('.json')} of this output, on {nodes}"
    return None, "no run of this output says it; give --rate X, or measure one with `w2v-ray bench`"
