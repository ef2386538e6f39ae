"""Claims about steering, measured on several independently trained models: `benchmarks/claims.py` runs this package.

`sizes` says how much is measured, `measuring` and `further` measure one model, `estimates` holds numbers with their
uncertainty, `claims` lists the claims and when each of them holds, and `page` and `paper` write the tables.
"""
