"""The playground of `audiolens play`: a page on this machine on which sliders steer the clips of an open model.

`wish` is what a visitor asks for, `shelf` has the directions of the sliders (`ready` reads those of bundled concepts),
`studio` makes the clips, `line` lets visitors wait for one another, `recipe` says how to make a clip again, and
`server` answers the page in `static/`.
"""
