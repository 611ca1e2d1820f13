"""A history you can trust: no acknowledged write lost, none torn, none made up, whatever fails meanwhile.

Processes that are broken: `cluster`, by `faults`. Clients: `appliers`, `planners`, `readers`; leaders that are paused:
`pauses`, with `sleeper`. What they asked and heard is in `asked`; what really happened comes from `recorder`, which
shares no code with the product, and is replayed by `truth` and `fencing`. `checker` holds the one against the other;
`faulty` and `planted` show that it finds what it should. `run` is one run, `__main__` all of them.
"""
