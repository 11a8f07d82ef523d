"""What would make a program faster on a TPU slice: compiler options, and einsums of this library.

A change is named only after the program with it was compiled and replayed.
"""

from .advice import Advice as Advice
from .advice import EinsumAdvice as EinsumAdvice
from .advice import OptionAdvice as OptionAdvice
from .advising import advise as advise
from .advising import option_sets as option_sets

__all__ = ["Advice", "EinsumAdvice", "OptionAdvice", "advise", "option_sets"]
