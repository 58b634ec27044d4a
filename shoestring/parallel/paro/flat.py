"""Parameters of one unit and dtype as one flat tensor, and this rank's shards of it (source: ours, after
FSDP's flat parameter, arXiv 2304.11277).

A flat holds its entries one after the other, filled up to a multiple of all ranks. Offsets do not depend on
strategy or ranks, so a shard is a range of elements and any two layouts can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from shoestring.cluster.strategies import Layout, Strategy
from shoestring.parallel.paro.moves import cut_shard, overlap

ALIGN = 16  # elements; shards start where vector loads like them to


@dataclass
class Entry:
    """One parameter in a flat.

    Attributes:
        name: the first name that the model knows it by.
        shape: of the whole parameter.
        offset: of its first element in the flat.
        owners: (module, attribute) of every place that holds it; more than one where weights are tied.
        parameter: what the modules hold; a view into the flat.
    """

    name: str
    shape: torch.Size
    offset: int
    owners: list[tuple[nn.Module, str]]
    parameter: nn.Parameter

    @property
    def numel(self) -> int:
        """Elements."""
        return self.shape.numel()

    @property
    def end(self) -> int:
        """One past its last element in the flat."""
        return self.offset + self.numel


@dataclass
class Piece:
    """This rank's part of one parameter: what the optimizer updates.

    Attributes:
        start, stop: range of the parameter's flattened elements; equal where this rank holds none.
        offset: of its first element in the shard by the states letter.
        master: fp32, a view into the flat's masters; in the parameter's shape where it is whole.
    """

    name: str
    shape: torch.Size
    start: int
    stop: int
    offset: int
    flat: Flat
    master: nn.Parameter

    def let_go(self) -> None:
        """Free what the piece holds; its name and place stay."""
        self.master.data = self.master.data.new_empty(0)
        self.master.grad = None

    @property
    def whole(self) -> bool:
        """Whether this rank holds all of it."""
        return self.stop - self.start == self.shape.numel()


@dataclass
class Flat:
    """One flat and its shards.

    Attributes:
        dtype: of parameters and of what is computed with them.
        gradient_dtype: of the accumulated gradients.
        wire_dtype: of gradients on the network.
        trainable: frozen flats have neither gradients nor states.
        full: [padded]; holds storage only while gathered, unless parameters are kept whole.
        parameters: this rank's shard by the parameters letter, [padded / d_p].
        gradients: by the gradients letter, [padded / d_g]; empty when frozen.
        masters: fp32 by the states letter, [padded / d_os]; inside `parameters` where those are fp32.
        moments: name of an optimizer state -> its shard, like `masters`.
        dirty: whether `gradients` holds something to add to.
    """

    strategy: Strategy
    layout: Layout
    rank: int
    dtype: torch.dtype
    gradient_dtype: torch.dtype
    wire_dtype: torch.dtype
    trainable: bool
    device: torch.device
    entries: list[Entry] = field(default_factory=list)
    full: Tensor = field(init=False)
    parameters: Tensor = field(init=False)
    gradients: Tensor = field(init=False)
    masters: Tensor = field(init=False)
    moments: dict[str, Tensor] = field(default_factory=dict)
    dirty: bool = False

    # --- making --------------------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Elements that mean something."""
        return self.entries[-1].end

    @property
    def padded(self) -> int:
        """Elements with filling: shards of the finest letter in use are equal."""
        finest = max(self.layout.parts(letter) for letter in self.strategy.name)
        unit = finest * ALIGN
        return (self.numel + unit - 1) // unit * unit

    def allocate(self) -> None:
        """Room for everything, zeros; the full tensor is there to be filled."""
        self.full = torch.zeros(self.padded, dtype=self.dtype, device=self.device)
        whole = self.strategy.parameters == "N"
        start, stop = self.range(self.strategy.parameters)
        self.parameters = self.full if whole else self.full.new_zeros(stop - start)
        if not self.trainable:
            self.gradients = self.masters = self.full.new_empty(0)
            return
        self.gradients = torch.zeros(
            self._shard_size(self.strategy.gradients), dtype=self.gradient_dtype, device=self.device
        )
        first, last = self.range(self.strategy.states)
        if self.masters_inside:
            self.masters = self.parameters[first - start : last - start]
        else:
            self.masters = torch.zeros(last - first, dtype=torch.float32, device=self.device)

    @property
    def masters_inside(self) -> bool:
        """Whether the masters are a range of the parameters' shard: no second copy where both are fp32."""
        return self.trainable and self.dtype == torch.float32 and not self.strategy.dominated

    @torch.no_grad()
    def fill(self, entry: Entry, value: Tensor) -> None:
        """Take in the whole value of one parameter, while `full` has storage; masters keep its precision."""
        flat = value.detach().reshape(-1)
        self.full[entry.offset : entry.end].copy_(flat)
        if self.trainable and not self.masters_inside:
            first, _ = self.range(self.strategy.states)
            low, high = self.part(self.strategy.states, entry)
            if low < high:
                self.masters[low - first : high - first].copy_(flat[low - entry.offset : high - entry.offset])

    @torch.no_grad()
    def settle(self) -> None:
        """All entries are filled: keep this rank's shard, let go of the rest."""
        if self.strategy.parameters != "N":
            start, stop = self.range(self.strategy.parameters)
            self.parameters.copy_(self.full[start:stop])
            self.free()

    def range(self, letter: str) -> tuple[int, int]:
        """Elements [start, stop) of this rank's shard by a letter."""
        return cut_shard(self.padded, self.padded, self.layout, letter, self.rank)

    def part(self, letter: str, entry: Entry) -> tuple[int, int]:
        """Elements [low, high) of the flat that are both this rank's by a letter and the entry's."""
        return overlap(self.range(letter), (entry.offset, entry.end))

    def _shard_size(self, letter: str) -> int:
        return self.padded // self.layout.parts(letter)

    # --- storage -------------------------------------------------------------------------------

    @property
    def here(self) -> bool:
        """Whether `full` has storage."""
        return self.full.untyped_storage().size() > 0

    def make_room(self) -> None:
        """Give `full` storage; its contents are undefined."""
        self.full.untyped_storage().resize_(self.padded * self.full.element_size())

    def free(self) -> None:
        """Take the storage of `full` away, unless parameters are kept whole."""
        if self.strategy.parameters != "N":
            self.full.untyped_storage().resize_(0)

    # --- what the optimizer sees ------------------------------------------------------------------

    def pieces(self) -> list[Piece]:
        """This rank's part of each entry, by the states letter."""
        first, _ = self.range(self.strategy.states)
        found = []
        for entry in self.entries:
            low, high = self.part(self.strategy.states, entry)
            view = self.masters[low - first : high - first]
            whole = high - low == entry.numel
            start = low - entry.offset if high > low else 0
            found.append(
                Piece(
                    entry.name,
                    entry.shape,
                    start,
                    start + high - low,
                    low - first,
                    self,
                    nn.Parameter(view.view(entry.shape) if whole else view, requires_grad=True),
                )
            )
        return found

    @torch.no_grad()
    def publish(self) -> None:
        """Round the updated masters into this rank's range of the parameters' shard."""
        if not self.masters_inside:
            start, _ = self.range(self.strategy.parameters)
            first, last = self.range(self.strategy.states)
            self.parameters[first - start : last - start].copy_(self.masters)

    def own_parameters(self) -> Tensor:
        """This rank's range by the states letter inside its parameters' shard."""
        start, _ = self.range(self.strategy.parameters)
        first, last = self.range(self.strategy.states)
        return self.parameters[first - start : last - start]

    def let_go(self) -> None:
        """Free everything; the entries' views stay as long as modules have them."""
        nothing = torch.empty(0, device=self.device)
        self.full = self.parameters = self.gradients = self.masters = nothing
        self.moments.clear()

    def bytes(self) -> dict[str, int]:
        """Bytes that this rank holds between steps: parameters, gradients, states (masters and moments)."""
        masters = 0 if self.masters_inside else self.masters.numel() * 4
        return {
            "parameters": self.parameters.numel() * self.parameters.element_size(),
            "gradients": self.gradients.numel() * self.gradients.element_size(),
            "states": masters + sum(t.numel() * t.element_size() for t in self.moments.values()),
        }
