"""A seeded driver that reads damaged and malicious files with every loader of audiolens: `make fuzz SECONDS=600`.

`corpus` makes small valid files with the project's own writers; `mutations`, `structures` and `places` change them;
`loaders` lists the functions that read them; `watch` observes a read; `cases` assembles one case; `driver` runs cases
in two processes and counts the results. A case depends only on (loader, seed, number):

    python -m hostile.fuzz --loader directions --seed 0 --case 1234
"""

# Must come before anything that imports nnsight, as in `conftest`.
import beartype  # noqa: F401
