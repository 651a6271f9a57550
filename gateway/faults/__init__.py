"""The fault kit: a model server and a network link that misbehave on order."""
