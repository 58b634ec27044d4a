"""The published cost of a strategy, apart from what we predict ourselves (`costs`).

Source: PaRO, arXiv 2310.06003, written out for any two link rates; bf16 parameters and gradients, Adam in
fp32. No latency, no compute, no overlap, flat rings. Psi parameters, Psi' of them trainable; n = g m ranks in
groups of m.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.cluster.strategies import Strategy

WIDTH_BYTES = 2  # bf16, of parameters and of gradients
STATE_BYTES = 12  # fp32 master and two moments


@dataclass(frozen=True)
class Setting:
    """What the formulas are given.

    Attributes:
        ranks, group_size: n and m; m divides n.
        accumulation: s, micro-steps of an optimizer step.
        inside_bytes_per_s: B', of each rank inside its group.
        card_bytes_per_s: B, of a node's card: a flat ring crosses it once, the m peers of a node share it.
        parameters, trainable: Psi and Psi'.
    """

    ranks: int
    group_size: int
    accumulation: int
    inside_bytes_per_s: float
    card_bytes_per_s: float
    parameters: float
    trainable: float

    def parts(self, letter: str) -> int:
        """d of a letter: 1, m or n."""
        return {"N": 1, "I": self.group_size, "G": self.ranks}[letter]


def published_bytes(strategy: Strategy, setting: Setting) -> float:
    """Bytes per rank: 2 Psi/d_p + 2 Psi'/d_g + 12 Psi'/d_os."""
    return (
        WIDTH_BYTES * setting.parameters / setting.parts(strategy.parameters)
        + WIDTH_BYTES * setting.trainable / setting.parts(strategy.gradients)
        + STATE_BYTES * setting.trainable / setting.parts(strategy.states)
    )


def published_step_s(strategy: Strategy, setting: Setting) -> float:
    """T = s (2 t_param + t_gradient) + t_syncg + t_syncp, in s.

    - t_param: N 0; I 2 Psi (m-1)/(m B'); G 2 Psi (n-1)/(n B); t_gradient: the same of Psi'.
    - t_syncg, gradients to states: N to G global reduce-scatter; N to I reduce-scatter inside, all-reduce
      between; I to I all-reduce of Psi'/m between; I to G reduce-scatter of Psi'/m between; N to N global
      all-reduce.
    - t_syncp, states to parameters: G to N global all-gather; G to I all-gather of Psi'/m between; I to N
      all-gather inside; no finer parameters need one.

    Raises:
        ValueError: states are coarser than gradients, for which nothing is published.
    """
    micro_s = 2 * _pass_s(strategy.parameters, setting, setting.parameters) + _pass_s(
        strategy.gradients, setting, setting.trainable
    )
    update_s = _sync_gradients_s(strategy, setting) + _sync_parameters_s(strategy, setting)
    return setting.accumulation * micro_s + update_s


def _pass_s(letter: str, setting: Setting, parameters: float) -> float:
    """One all-gather or reduce-scatter over the ranks that a letter shards over."""
    parts = setting.parts(letter)
    rate = setting.inside_bytes_per_s if letter == "I" else setting.card_bytes_per_s
    return WIDTH_BYTES * parameters * (parts - 1) / (parts * rate)


def _between_s(setting: Setting) -> float:
    """One all-gather or reduce-scatter of Psi'/m between the g peers; m of them share a card: B/m each."""
    peers = setting.ranks // setting.group_size
    shard_bytes = WIDTH_BYTES * setting.trainable / setting.group_size
    return shard_bytes * (peers - 1) / peers / (setting.card_bytes_per_s / setting.group_size)


def _sync_gradients_s(strategy: Strategy, setting: Setting) -> float:
    ways = {
        "GG": 0.0,
        "IG": _between_s(setting),
        "II": 2 * _between_s(setting),
        "NI": _pass_s("I", setting, setting.trainable) + 2 * _between_s(setting),
        "NG": _pass_s("G", setting, setting.trainable),
        "NN": 2 * _pass_s("G", setting, setting.trainable),
    }
    way = strategy.gradients + strategy.states
    if way not in ways:
        raise ValueError(f"{strategy.name}: {strategy.dominated}")
    return ways[way]


def _sync_parameters_s(strategy: Strategy, setting: Setting) -> float:
    ways = {
        "GN": _pass_s("G", setting, setting.trainable),
        "GI": _between_s(setting),
        "IN": _pass_s("I", setting, setting.trainable),
    }
    way = strategy.states + strategy.parameters
    return ways[way] if way in ways else 0.0
