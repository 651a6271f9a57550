"""The routing simulator: real routes over timed engines in virtual time, to choose a policy and a fleet in advance.

Gateways take calls at random; each has the routes, queue, policy and exchange that the real one has. Engines batch
calls, read prompts in chunks, remember prefixes while there is room and let calls wait, as `gateway.faults.engine`
describes.
"""
