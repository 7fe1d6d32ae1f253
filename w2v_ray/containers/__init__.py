"""Audio that lies inside other files: members of gzipped tars, and values of Parquet and Arrow files.

Each file is opened once for all that is wanted of it, and read forward; nothing is written to disk.
"""

from w2v_ray.containers.gzip_stream import GzipStream, StreamDamage
from w2v_ray.containers.reading import MAX_VALUE_BYTES, Wanted, read_values

__all__ = ["MAX_VALUE_BYTES", "GzipStream", "StreamDamage", "Wanted", "read_values"]
