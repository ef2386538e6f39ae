"""A seeded driver that reads damaged and malicious files with every loader of audiolens: `make fuzz SECONDS=600`.

`corpus` makes small whole files with the project's own writers, `mutations`, `structures` and `places` change them,
`loaders` lists what reads them, `watch` sees what a reading does, `cases` puts one case together, and `driver` runs
them in two processes and counts. A case follows from (loader, seed, number) alone:

    python -m hostile.fuzz --loader directions --seed 0 --case 1234
"""

# Before anything imports nnsight, as in `conftest`.
import beartype  # noqa: F401
