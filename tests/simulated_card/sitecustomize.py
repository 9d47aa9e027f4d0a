"""In a process whose PYTHONPATH names this folder, PyTorch sees a card and no CUDA toolkit: driver only, no nvcc."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class CardFinder(importlib.abc.MetaPathFinder):
    """Lets `torch` be found as ever, and changes what it says of cards once it is loaded."""

    busy = False

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch" or CardFinder.busy:
            return None
        CardFinder.busy = True
        try:
            spec = importlib.util.find_spec("torch")
        finally:
            CardFinder.busy = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_with_card(module: ModuleType) -> None:
            load(module)
            module.cuda.is_available = lambda: True
            module.cuda.device_count = lambda: 1
            module.cuda.get_device_capability = lambda *_: (9, 0)
            import torch.utils.cpp_extension

            torch.utils.cpp_extension.CUDA_HOME = None

        spec.loader.exec_module = load_with_card  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, CardFinder())
