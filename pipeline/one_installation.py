"""A process has `pipeline` and `igpt_model` from one installation, whichever is imported first.

MLflow puts the code of a registered model before ours. Where `pipeline` is ours already, an `igpt_model` of the model's
would meet a `pipeline` of another version.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _BesidePipeline(MetaPathFinder):
    """Finds `igpt_model` beside the `pipeline` that this process has imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        imported = sys.modules.get("pipeline")
        if fullname != "igpt_model" or imported is None:
            return None
        return PathFinder.find_spec(fullname, [str(Path(folder).parent) for folder in imported.__path__])


sys.meta_path.insert(0, _BesidePipeline())
