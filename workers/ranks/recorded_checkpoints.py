"""DeepSpeed's own checkpoint files, and which of them this rank wrote."""

from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine


class RecordedCheckpoints(TorchCheckpointEngine):
    """Writes as DeepSpeed does by default and remembers what it wrote of it."""

    def __init__(self, config_params: Any) -> None:
        super().__init__(config_params)
        self.files: list[Path] = []
        """Of the last checkpoint, in the order that they were written."""

    def create(self, info: Any) -> None:
        """A new checkpoint begins."""
        super().create(info)
        self.files = []

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""
        super().save(state_dict, path)
        self.files.append(Path(path))
