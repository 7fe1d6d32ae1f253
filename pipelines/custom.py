"""A pipeline composed by hand: your own Ray Dataset, w2v_ray as one step of it, and your own ending.

python pipelines/custom.py FOLDER OUTPUT [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray

import w2v_ray

FOLDER, OUTPUT = sys.argv[1:3]
MODEL = sys.argv[3] if len(sys.argv) > 3 else "facebook/wav2vec2-base-960h"
MIN_CONFIDENCE = 0.8  # below this a person should listen


def is_doubtful(table: pa.Table) -> pa.Table:
    return table.append_column("is_doubtful", pc.less(table["confidence"], MIN_CONFIDENCE))


clips = [{"uri": str(path), "folder": path.parent.name} for path in sorted(Path(FOLDER).rglob("*.flac"))]

ds = ray.data.from_items(clips)  # any Dataset that says where the audio is
ds = w2v_ray.transcribe(ds, model=MODEL)  # lazy; your own columns stay
ds = ds.map_batches(is_doubtful, batch_format="pyarrow")
ds.write_parquet(OUTPUT)  # now it runs, as a stream
