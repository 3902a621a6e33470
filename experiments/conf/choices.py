"""What the choices of a configuration are called, for records."""

from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig


@dataclass(frozen=True)
class Names:
    """Names of the chosen task and model."""

    task: str
    model: str

    @classmethod
    def chosen(cls) -> "Names":
        """Return those of the command that Hydra runs."""
        choices = HydraConfig.get().runtime.choices
        return cls(task=str(choices.get("task")), model=str(choices.get("model")))
