"""The name by which registered models know the code that answers for them: their MLmodel files name this module."""

from igpt_model.registry.serving import _load_pyfunc

__all__ = ["_load_pyfunc"]
