"""The routing simulator: real policies over simulated targets, to choose a policy and a fleet before buying it.

A discrete event simulation. Gateways take calls at random; each has the policy, the load counts and the exchange that
the real one has. Targets are simple: each reads prompts one after another, remembers prefixes, and writes answers at
a steady pace without limit. Ranks of policies carry over to real engines better than seconds do.
"""
