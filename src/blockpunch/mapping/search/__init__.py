"""The search-based mapping: a recurrent controller proposes schemes for all layers, real evaluations teach it.

The paper (Gong et al. 2022) searches by policy gradient with actions of regularity and block size, and a reward of
accuracy and latency. Here the latency is no term to be weighed: the solver completes each proposal by rates, so that it
is as fast as the exact mapping, by its count (:mod:`blockpunch.mapping.search.space`), and the reward is the accuracy
alone, by the network pruned in one shot (:mod:`blockpunch.mapping.search.oneshot`). The first candidate is the exact
mapping; what the sum of the layers' errors cannot tell, how errors add up, the search finds out.
"""

from blockpunch.mapping.search.executors import Evaluator, Executor, Local, OnRay
from blockpunch.mapping.search.mapper import Found, map_search

__all__ = ["Evaluator", "Executor", "Found", "Local", "OnRay", "map_search"]
