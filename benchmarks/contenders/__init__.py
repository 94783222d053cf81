"""The contenders, by the names of the command line. A new one is a module here and a row in this table.

None of them imports the library it measures before it runs, so that this table can be read without any of them.
"""

from collections.abc import Mapping
from typing import Final

from benchmarks.contenders.limit import Limit
from benchmarks.contenders.nnsight import NNsight
from benchmarks.contenders.ours import Ours
from benchmarks.contenders.plain import Plain
from benchmarks.contenders.protocol import Contender
from benchmarks.contenders.torchlens import TorchLens
from benchmarks.contenders.transformer_lens import TransformerLens

CONTENDERS: Final[Mapping[str, Contender]] = {
    "limit": Limit(),
    "ours": Ours(),
    "plain": Plain(),
    "transformer_lens": TransformerLens(),
    "nnsight": NNsight(),
    "torchlens": TorchLens(),
}
"""In the order in which they run and stand in the tables."""
