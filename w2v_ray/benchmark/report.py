"""What a measurement found, as it is printed, written as JSON, and read again to size a cluster."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

__all__ = ["VERSION", "BenchReport", "EncoderReport", "StageReport", "WholeReport"]

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """One stage over the audio, alone on the machine."""

    name: str
    """As in the table of the data flow."""
    audio_s: float
    """Seconds of audio in a pass."""
    num_passes: int
    """How often it was timed; what follows is of the pass in the middle."""
    busy_s: float
    """Seconds of the clock."""
    cpu_s: float
    """Seconds of CPU cores, all threads together."""
    rate: float
    """Seconds of audio in a second of the clock."""
    share: float
    """Of the clock, where the stages run one after another over the same audio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderReport:
    """What the encoder did with its time."""

    num_batches: int
    """In a pass."""
    padding_share: float
    """Of what it computed, in seconds of audio."""
    flop_per_audio_s: float
    """Operations that a second of audio needs, without padding."""
    achieved_flops: float
    """Of these, in a second of the clock."""
    peak_flops: float
    """What this device was seen to do with a product of two large matrices, same type and threads."""
    peak_share: float
    """The one in the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeReport:
    """The pipeline as a job runs it, with Ray, on this machine alone."""

    audio_s: float
    num_shards: int
    wall_s: float
    """From the start of Ray to the last file."""
    startup_s: float
    """Of these, until the first audio was encoded: Ray, the workers, the model."""
    rate: float
    """Seconds of audio in a second of the clock since then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All of a measurement. Rates are seconds of audio in a second of the clock."""

    version: int
    """Of this record."""
    made_at: str
    """In UTC."""
    w2v_ray: str
    torch: str
    model: str
    task: str
    decoder: str
    """Of text: greedy, or the search and its language model."""
    device: str
    """Where the encoder ran: cpu, or cuda:N."""
    device_name: str
    num_encoders: int
    """That would run on this machine: of which one was timed."""
    num_cores: int
    encoder_threads: int | None
    """CPU threads of each encoder; None on a GPU."""
    dtype: str
    attn_implementation: str
    num_recordings: int
    num_segments: int
    num_failed: int
    """Segments, or recordings, that some stage rejected."""
    audio_s: float
    encoded_s: float
    """Audio of a pass of the encoder, which on a GPU is the sample repeated."""
    read_bytes_per_audio_s: float
    """Of the inputs."""
    written_bytes_per_audio_s: float
    """Of the table."""
    stages: tuple[StageReport, ...]
    encoder: EncoderReport
    process_bytes: int
    """The most memory of this process, in which all stages ran."""
    device_bytes: int | None
    """The most memory of tensors on the GPU; None on a CPU."""
    audio_decoders: int
    """Workers that read, decode and segment, for each encoder, that keep it busy."""
    text_decoders: int
    """Threads that decode text, for each encoder, that keep up with it; 0 where there is no text."""
    expected_rate: float
    """Of this machine, with all encoders and cores busy."""
    limit: str
    """The stage that limits it."""
    whole: WholeReport | None
    """None where it was left out."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))
