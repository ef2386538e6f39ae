"""Ask people what they hear in a study's clips: write a listening test as a static page, and analyse the responses.

`write` makes a folder with a page, whose clips have random names and matched levels, and a key that the page lacks.
`read` analyses the responses that listeners send back, as a `Preference` (pairs) or as `Ratings` (several clips on a
scale, as in MUSHRA).
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.listening_test.preference import Preference as Preference
    from analysis.listening_test.ratings import Ratings as Ratings
    from analysis.listening_test.reading import read as read
    from analysis.listening_test.writing import write as write

__all__ = ["Preference", "Ratings", "read", "write"]

_MODULES = {"Preference": "preference", "Ratings": "ratings", "read": "reading", "write": "writing"}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
