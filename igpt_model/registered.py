"""The module that MLmodel files of registered models name as their loader; it must keep this name."""

from igpt_model.registry.serving import _load_pyfunc

__all__ = ["_load_pyfunc"]
