"""The controller: a small recurrent network that walks through the layers and draws an action for each.

Policy gradient (REINFORCE, Williams 1992) as in architecture search (Zoph and Le 2017): the actions of good candidates
become likelier, those of bad ones less likely, against a moving average; an entropy bonus keeps it from settling early.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from blockpunch.mapping.search.space import ANY, EMPHASES, NEUTRAL, Actions, Space

HIDDEN = 48
RATE = 0.05
"""Of learning (Adam)."""
ENTROPY = 0.01
"""Weight of the entropy bonus, per decision."""
MEMORY = 0.8
"""What the moving averages of rewards keep at each step."""
WORST = -1.0
"""Least advantage: how bad a bad candidate is says little, and some are very bad."""
LEANING = 4.0, 1.5
"""How far an untaught controller leans to letting all schemes compete, and to errors as they are, in logits.

It begins around the exact mapping: single schemes forced on many layers at once are hardly ever good.
"""


class Controller(nn.Module):  # type: ignore[misc]
    """Draws actions for the open items of a space.

    Args:
        space: of actions.
        seed: of its weights and of all draws.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.allowed = torch.from_numpy(space.allowed)
        self.features = torch.from_numpy(space.features)
        items, schemes = self.allowed.shape
        actions = schemes * len(EMPHASES)
        self.before = nn.Embedding(1 + actions, HIDDEN)
        self.item = nn.Linear(self.features.shape[1], HIDDEN)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.heads = nn.Linear(HIDDEN, actions)
        self.own = nn.Parameter(torch.zeros(items, actions))
        for name, parameter in self.named_parameters():
            if name != "own":
                parameter.data.uniform_(-0.1, 0.1, generator=self.generator)
        self.start = torch.zeros(schemes, len(EMPHASES))
        self.start[ANY, :] += LEANING[0]
        self.start[:, NEUTRAL] += LEANING[1]
        self.optimizer = torch.optim.Adam(self.parameters(), lr=RATE)
        self.average: float | None = None
        self.spread = 0.0

    def _logits(self, item: int, hidden: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log chances of all actions of an item, next state), for each candidate."""
        hidden = self.cell(self.before(last) + self.item(self.features[item]), hidden)
        logits = self.heads(hidden) + self.own[item] + self.start.flatten()
        shut = ~self.allowed[item].repeat_interleave(len(EMPHASES))
        return logits.masked_fill(shut, -1e9).log_softmax(1), hidden

    def draw(self, count: int, temperature: float = 1.0) -> list[Actions]:
        """``count`` proposals; the higher the temperature, the more evenly drawn."""
        with torch.no_grad():
            hidden, last = torch.zeros(count, HIDDEN), torch.zeros(count, dtype=torch.long)
            columns = []
            for item in range(len(self.allowed)):
                logs, hidden = self._logits(item, hidden, last)
                chosen = torch.multinomial((logs / temperature).softmax(1), 1, generator=self.generator)[:, 0]
                columns.append(chosen)
                last = chosen + 1
        rows = torch.stack(columns, 1).tolist()
        return [[(action // len(EMPHASES), action % len(EMPHASES)) for action in row] for row in rows]

    def learn(self, proposals: Sequence[Actions], rewards: Sequence[float]) -> None:
        """One step of policy gradient."""
        advantage = self._advantage(np.asarray(rewards, np.float64))
        actions = torch.tensor([[scheme * len(EMPHASES) + emphasis for scheme, emphasis in row] for row in proposals])
        hidden, last = torch.zeros(len(actions), HIDDEN), torch.zeros(len(actions), dtype=torch.long)
        taken, entropy = torch.zeros(len(actions)), torch.zeros(len(actions))
        for item in range(len(self.allowed)):
            logs, hidden = self._logits(item, hidden, last)
            taken = taken + logs.gather(1, actions[:, item:item + 1])[:, 0]
            entropy = entropy - (logs.exp() * logs.clamp_min(-50)).sum(1)
            last = actions[:, item] + 1
        loss = -(torch.from_numpy(advantage).float() * taken).mean() - ENTROPY * entropy.mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        self.optimizer.step()

    def _advantage(self, rewards: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Rewards over their moving average, in units of their moving spread."""
        if self.average is None:
            self.average, self.spread = float(rewards.mean()), float(rewards.std())
        advantage = np.maximum((rewards - self.average) / (self.spread + 1e-6), WORST)
        self.spread = MEMORY * self.spread + (1 - MEMORY) * float(np.sqrt(((rewards - self.average) ** 2).mean()))
        self.average = MEMORY * self.average + (1 - MEMORY) * float(rewards.mean())
        return advantage
