"""Methods that only nets understand; each is a value to pass to ``pk.fit(..., method=...)``."""
