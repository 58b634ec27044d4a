"""Ring collectives by send and receive, for groups that are fast inside and slow between (source: ours, after
PaRO, arXiv 2310.06003). Usable alone: `from shoestring.parallel import rings`; see `rings.Rings`."""

from shoestring.parallel.group import PeerLostError
from shoestring.parallel.rings.choice import Choice, Request, choose
from shoestring.parallel.rings.rings import Pending, Rings
from shoestring.parallel.rings.schedule import Hop, block_sizes

__all__ = ["Choice", "Hop", "PeerLostError", "Pending", "Request", "Rings", "block_sizes", "choose"]
