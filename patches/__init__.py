"""One small file per model family: `PATCH`, the names apply_dynimg() needs, and `tiny()`, a random checkpoint of it."""
