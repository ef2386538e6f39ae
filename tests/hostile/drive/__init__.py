"""A driver of the whole API: every public name, called with one wrong argument at a time.

`names` finds what is public, `world` holds tiny models and what is made of them, `baselines` a valid call of each name,
`values` what a stranger may pass, `judged` what may come of it, and `run` makes the calls. `make drive CALLS=10000`.
"""
