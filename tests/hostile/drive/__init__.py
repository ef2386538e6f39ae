"""A driver of the whole API: every public name, called with one wrong argument at a time.

`names` finds all public names, `world` builds tiny models and results, `baselines` gives a valid call of each name,
`values` holds the wrong arguments, `judged` classifies the result of a call, and `run` makes the calls. Start it with
`make drive CALLS=10000`.
"""
