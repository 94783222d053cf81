"""What a model is set to, and whether a forward pass leaves it so: BigBird turns to full attention for good."""

from typing import Any

from torch import nn


class Modes:
    """What a model and its config are set to at one moment: words, yes and no, and which modules it consists of.

    Numbers and tensors are not looked at: models keep what they computed in them, and compute it again where needed.
    """

    def __init__(self, model: nn.Module) -> None:
        holders = [("config", model.config), *model.named_modules()]
        self._kept = [(name, holder, _words(holder), dict(_modules(holder))) for name, holder in holders]

    def changes(self) -> tuple[str, ...]:
        """Return what is not as it was: names of attributes and modules."""
        changed = []
        for name, holder, words, modules in self._kept:
            now = {**_words(holder), **_modules(holder)}
            was: dict[str, Any] = {**words, **modules}
            changed += [f"{name}.{key}".lstrip(".") for key in was if now.get(key) != was[key]]
        return tuple(changed)

    def restore(self) -> None:
        """Set the model to what it was."""
        for _, holder, words, modules in self._kept:
            vars(holder).update(words)
            _modules(holder).update(modules)


def _words(holder: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(holder).items() if isinstance(value, str | bool)}


def _modules(holder: Any) -> dict[str, nn.Module | None]:
    return holder._modules if isinstance(holder, nn.Module) else {}
