"""Directions: how they are read, what they are worth, where they come from, and how they become interventions."""

from audiolens.directions.directions import Directions as Directions
from audiolens.directions.directions import difference_in_means as difference_in_means
from audiolens.directions.directions import orthogonalised as orthogonalised
