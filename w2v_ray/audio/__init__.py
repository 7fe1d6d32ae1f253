"""Audio in: codecs, resampling and silence, in numpy; no Ray and no models."""
