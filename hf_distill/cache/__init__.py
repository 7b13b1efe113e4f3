"""A teacher's answers on disk; the names for users are in :mod:`hf_distill` and :mod:`hf_distill.cache.formats`."""
