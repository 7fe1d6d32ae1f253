"""Who may import whom: every import in the package is an arrow, and only those drawn here are allowed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "w2v_ray"

# A file or folder directly under w2v_ray/ -> what it may import from its siblings. "w2v_ray" is __init__.py.
# job looks into a checkpoint's config and processor, to refuse it before any worker starts.
ARROWS = """
errors     ->
schema     ->
decoder_config -> errors
variables  -> errors
store_config -> errors variables
head_config -> decoder_config errors
encoder_config -> decoder_config errors head_config
config     -> audio_config decoder_config encoder_config errors head_config store_config
align_config -> config errors
job_file   -> align_config config decoder_config errors head_config variables
hub        -> errors
crash_points ->
stores     -> crash_points errors store_config
parts      -> errors schema stores
audio      -> errors hub
audio_config -> errors
models     -> errors hub
text       -> errors hub stores
processors -> audio errors hub models text
inference  -> audio errors hub models processors text
containers -> errors stores
inputs     -> audio containers errors schema stores
plan       -> audio crash_points errors inputs parts schema stores
output     -> crash_points errors parts plan schema stores
packing    ->
attempts   ->
item_process -> errors
failures   -> errors
quarantine -> attempts errors failures item_process schema
metrics    -> errors
metric_names ->
progress   ->
stages     -> encoder_config
quality    ->
lineage    -> stores
metering   -> item_process progress
telemetry  -> errors metric_names progress
run_record -> errors lineage plan progress quality stores w2v_ray
termination ->
execution  -> attempts errors failures plan progress ray_address ray_auth run_record telemetry termination
guards     -> item_process metering quarantine telemetry
flow_record -> config head_config plan pools run_record schema telemetry
stages     -> audio audio_config containers crash_points decoder_config errors heads models parts processors
stages     -> quality schema stores text
frame_rate -> audio errors hub models processors schema
heads      -> errors frame_rate head_config hub models processors
decoding   -> decoder_config errors stores text
languages  -> errors hub plan stores text
job        -> align_config audio config decoder_config decoding errors frame_rate head_config heads
job        -> hub job_file languages output plan processors ray_address schema stores text
pools      -> config errors
ray_auth   ->
ray_address -> errors
machines   -> errors pools ray_auth
pipeline   -> align_config attempts config decoding errors execution heads job packing parts plan pools
pipeline   -> flow_record guards languages machines progress quarantine schema stages stores telemetry
dataset    -> output
plugin_rows -> audio_config errors languages packing schema stages text
plugin     -> decoder_config decoding encoder_config errors heads hub job plugin_rows schema stages text
plugin_align -> encoder_config heads hub job plugin_rows schema stages
plugin_heads -> encoder_config heads plugin_rows schema stages
demo       -> errors text
recording_names -> errors
rttm       -> errors inputs
result_files -> errors stores
embeddings -> errors inputs metrics output recording_names
exports    -> errors output parts plan rttm schema stores
references -> errors exports inputs metrics recording_names rttm
report     -> errors exports metrics output plan recording_names references result_files run_record stores
report     -> w2v_ray
console    -> job output plan progress
sizing     -> decoder_config errors stores
benchmark  -> audio config decoding errors frame_rate heads job models pipeline plan processors progress
benchmark  -> schema stages stores w2v_ray
console_bench -> benchmark console demo sizing
console_demo -> demo metrics
cli_lm     -> errors text
forecast   -> align_config config encoder_config errors frame_rate head_config job models plan pools stores
job_schema -> encoder_config
job_schema -> align_config audio_config config decoder_config head_config job_file store_config
console_forecast -> console forecast
cli_job_files -> config console console_forecast errors forecast job_schema
cli_decode -> cli_job_files config console decoder_config errors job pipeline
job_text   -> config
render     -> config errors job_text
submission -> errors job_text
cli_cluster -> config errors job_file job_text render submission
doctor     -> audio errors hub models ray_auth store_config stores text
cli_doctor -> cli_decode doctor errors store_config stores
cli_embeddings -> embeddings errors result_files stores
cli_export -> exports
cli_frames -> metrics references
cli_output -> cli_job_files console errors output
cli_status -> console errors plan run_record
cli_report -> report
cli_bench  -> benchmark cli_decode config console_bench decoder_config demo encoder_config errors
cli_bench  -> head_config result_files sizing text
cli_jobs   -> align_config audio_config cli_decode cli_job_files config encoder_config head_config
cli        -> cli_bench cli_cluster cli_decode cli_doctor cli_embeddings cli_export cli_frames cli_job_files
cli        -> cli_jobs cli_lm cli_output cli_report cli_status config console console_demo demo errors
cli        -> failures job job_file pipeline plan termination w2v_ray
"""
ALLOWED: dict[str, set[str]] = {}
for name, _, *targets in map(str.split, ARROWS.strip().splitlines()):
    ALLOWED.setdefault(name, set()).update(targets)
# The rest runs and is tested without.
MAY_IMPORT_RAY = {
    "dataset",
    "doctor",
    "execution",
    "flow_record",
    "guards",
    "machines",
    "pipeline",
    "plugin",
    "plugin_align",
    "plugin_heads",
    "plugin_rows",
    "ray_auth",
    "telemetry",
    "submission",
}


def imported_names(module: str, source: str) -> Iterator[tuple[int, str]]:
    """The line and full dotted name of every import in ``source``, at any depth, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def place(dotted: str) -> str:
    """Which line of ARROWS a name inside the package belongs to."""
    parts = dotted.split(".")
    if len(parts) == 1 or parts[1] == "__init__":
        return "w2v_ray"
    is_sibling = (
        parts[1] in ALLOWED or (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
    )
    return parts[1] if is_sibling else "w2v_ray"


def wrong_arrows(module: str, source: str) -> list[str]:
    """What ``module`` imports and may not. A package's ``__init__`` is named with its ``.__init__``."""
    here = place(module)
    if here not in {"w2v_ray", *ALLOWED}:
        return [f"{module} has no line in ARROWS: say what it may import"]
    wrong = []
    for line, target in imported_names(module, source):
        top = target.split(".")[0]
        allowed = {here} | ALLOWED.get(here, set(ALLOWED))  # __init__.py names everything, and loads it late
        if top == "w2v_ray" and place(target) not in allowed:
            wrong.append(f"{module}:{line} imports {target}: {here} may import {sorted(allowed - {here})}")
        if top == "transformers":
            wrong.append(f"{module}:{line} imports transformers, which is for tests only")
        if top == "ray" and here not in MAY_IMPORT_RAY:
            wrong.append(f"{module}:{line} imports ray: only {sorted(MAY_IMPORT_RAY)} may")
    return wrong


def package_modules() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield module, path.read_text(encoding="utf-8")


def test_every_import_follows_an_arrow() -> None:
    wrong = [arrow for module, source in package_modules() for arrow in wrong_arrows(module, source)]
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_the_arrows_that_exist() -> None:
    arrows = {
        (place(module), place(target))
        for module, source in package_modules()
        for _, target in imported_names(module, source)
        if target.startswith("w2v_ray.")
    }
    assert {("config", "errors"), ("hub", "errors"), ("models", "models")} <= arrows


def test_the_arrows_form_no_circle() -> None:
    order = list(TopologicalSorter(ALLOWED).static_order())  # raises CycleError on a circle
    assert set(order) == set(ALLOWED) | {"w2v_ray"}


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("w2v_ray.audio.codecs", "from w2v_ray.text.tokenizer import x", "w2v_ray.text.tokenizer.x"),
        ("w2v_ray.audio.codecs", "from ..models import Wav2Vec2Model", "w2v_ray.models.Wav2Vec2Model"),
        ("w2v_ray.text.greedy", "def f():\n    import w2v_ray.stages.encode", "w2v_ray.text.greedy:2"),
        ("w2v_ray.models.__init__", "from ..audio.features import x", "w2v_ray.audio.features.x"),
        ("w2v_ray.models.wav2vec2", "if TYPE_CHECKING:\n    import ray.data", "imports ray: only"),
        ("w2v_ray.models.auto", "from transformers import AutoModel", "for tests only"),
        ("w2v_ray.stages.encode", "from w2v_ray.pipeline import run", "w2v_ray.pipeline.run"),
        ("w2v_ray.stages.encode", "from w2v_ray import run", "w2v_ray.run"),
        ("w2v_ray.packing", "import ray", "imports ray: only"),
        ("w2v_ray.__init__", "import ray", "imports ray: only"),
        ("w2v_ray.stores", "from w2v_ray import plan", "w2v_ray.plan"),
        ("w2v_ray.cli", "from w2v_ray.stages.encode import Encode", "w2v_ray.stages.encode.Encode"),
    ],
)
def test_any_other_arrow_is_found(module: str, source: str, complaint: str) -> None:
    (wrong,) = wrong_arrows(module, source)
    assert complaint in wrong


def test_a_module_or_folder_without_a_line_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newcomer.py").write_text("")
    (tmp_path / "newcomers").mkdir()
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert "has no line in ARROWS" in wrong_arrows("w2v_ray.newcomer", "")[0]
    assert "has no line in ARROWS" in wrong_arrows("w2v_ray.newcomers.first", "")[0]
    assert wrong_arrows("w2v_ray.cli", "from w2v_ray.newcomer import x\nimport w2v_ray.newcomers.first")[1:]


def test_allowed_arrows_pass() -> None:
    assert (
        wrong_arrows("w2v_ray.stages.encode", "import torch\nfrom ..models import x\nfrom . import y") == []
    )
    assert wrong_arrows("w2v_ray.pipeline", "import ray\nfrom w2v_ray import plan") == []
